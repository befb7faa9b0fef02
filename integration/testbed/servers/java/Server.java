import jakarta.servlet.http.HttpServlet;
import jakarta.servlet.http.HttpServletRequest;
import jakarta.servlet.http.HttpServletResponse;
import io.undertow.Undertow;
import io.undertow.UndertowOptions;
import java.io.IOException;
import java.io.InputStream;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.util.Collections;
import java.util.List;
import org.apache.catalina.connector.Connector;
import org.apache.catalina.startup.Tomcat;
import org.eclipse.jetty.io.Content;
import org.eclipse.jetty.http2.server.HTTP2CServerConnectionFactory;
import org.eclipse.jetty.server.Handler;
import org.eclipse.jetty.server.HttpConfiguration;
import org.eclipse.jetty.server.HttpConnectionFactory;
import org.eclipse.jetty.server.Request;
import org.eclipse.jetty.server.Response;
import org.eclipse.jetty.server.ServerConnector;
import org.eclipse.jetty.util.Callback;

/** Tomcat, Jetty or Undertow on the clear ports of the gauntlet: a line for each request. */
public final class Server {
    private static final int[] PORTS = {80, 8081};

    public static void main(String[] arguments) throws Exception {
        String address = arguments[1];
        switch (arguments[0]) {
            case "tomcat" -> tomcat(address);
            case "jetty" -> jetty(address);
            default -> undertow(address);
        }
        note("ready");
        Thread.currentThread().join();
    }

    /** What is not visible ASCII as \xHH, so that fields stay apart. */
    private static String escape(String text) {
        StringBuilder to = new StringBuilder();
        for (byte octet : (text == null ? "" : text).getBytes(StandardCharsets.UTF_8)) {
            if (octet > 0x20 && octet < 0x7f && octet != '\\') {
                to.append((char) octet);
            } else {
                to.append(String.format("\\x%02x", octet & 0xff));
            }
        }
        return to.toString();
    }

    private static synchronized void note(String... fields) {
        System.out.println(String.join("\t", fields));
        System.out.flush();
    }

    private static byte[] seen(int port, String method, String path, String host, List<String> limit) {
        String limits = escape(String.join(",", limit));
        note("request", Integer.toString(port), escape(method), escape(path), "", escape(host), limits, "");
        return ("saw " + method + " " + path + "\n").getBytes(StandardCharsets.UTF_8);
    }

    private static void tomcat(String address) throws Exception {
        Tomcat tomcat = new Tomcat();
        tomcat.setBaseDir(Files.createTempDirectory("tomcat").toString());
        for (int port : PORTS) {
            Connector connector = new Connector();
            connector.setPort(port);
            connector.setProperty("address", address);
            connector.addUpgradeProtocol(new org.apache.coyote.http2.Http2Protocol());
            tomcat.getService().addConnector(connector);
        }
        var context = tomcat.addContext("", null);
        Tomcat.addServlet(context, "seen", new HttpServlet() {
            @Override
            protected void service(HttpServletRequest request, HttpServletResponse response) throws IOException {
                request.getInputStream().readAllBytes();
                String path = request.getServletPath() + (request.getPathInfo() == null ? "" : request.getPathInfo());
                List<String> limit = Collections.list(request.getHeaders("X-Limit"));
                byte[] body =
                    seen(request.getLocalPort(), request.getMethod(), path, request.getServerName(), limit);
                response.setContentLength(body.length);
                response.getOutputStream().write(body);
            }
        });
        context.addServletMappingDecoded("/*", "seen");
        tomcat.start();
    }

    private static void jetty(String address) throws Exception {
        var server = new org.eclipse.jetty.server.Server();
        for (int port : PORTS) {
            var configuration = new HttpConfiguration();
            var connector = new ServerConnector(server, new HttpConnectionFactory(configuration),
                new HTTP2CServerConnectionFactory(configuration));
            connector.setHost(address);
            connector.setPort(port);
            server.addConnector(connector);
        }
        server.setHandler(new Handler.Abstract() {
            @Override
            public boolean handle(Request request, Response response, Callback callback) throws Exception {
                try (InputStream body = Content.Source.asInputStream(request)) {
                    body.readAllBytes();
                }
                String path = Request.getPathInContext(request);
                byte[] body = seen(Request.getLocalPort(request), request.getMethod(), path,
                    Request.getServerName(request), request.getHeaders().getValuesList("X-Limit"));
                Content.Sink.write(response, true, new String(body, StandardCharsets.UTF_8), callback);
                return true;
            }
        });
        server.start();
    }

    private static void undertow(String address) {
        var builder = Undertow.builder().setServerOption(UndertowOptions.ENABLE_HTTP2, true);
        for (int port : PORTS) {
            builder.addHttpListener(port, address);
        }
        builder.setHandler(exchange -> exchange.getRequestReceiver().receiveFullBytes((all, body) -> {
            var limits = all.getRequestHeaders().get("X-Limit");
            byte[] page = seen(all.getDestinationAddress().getPort(), all.getRequestMethod().toString(),
                all.getRequestPath(), all.getHostName(), limits == null ? List.of() : List.copyOf(limits));
            all.getResponseSender().send(new String(page, StandardCharsets.UTF_8));
        }));
        builder.build().start();
    }
}
