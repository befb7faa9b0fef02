// Server answers HTTP/1, 2 and 3 on the ports of the gauntlet, and writes a line for each ClientHello and each request.
package main

import (
	"crypto/tls"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"path"
	"strings"
	"sync"

	"github.com/quic-go/quic-go/http3"
)

var lock sync.Mutex

// Escape writes what is not visible ASCII as \xHH, so that fields stay apart.
func escape(text string) string {
	var to strings.Builder
	for _, b := range []byte(text) {
		if b > 0x20 && b < 0x7f && b != '\\' {
			to.WriteByte(b)
		} else {
			fmt.Fprintf(&to, "\\x%02x", b)
		}
	}
	return to.String()
}

func note(fields ...string) {
	lock.Lock()
	defer lock.Unlock()
	fmt.Fprintln(os.Stdout, strings.Join(fields, "\t"))
}

// Clean is what a file server makes of a path; it stays a folder's.
func clean(text string) string {
	cleaned := path.Clean(text)
	if strings.HasSuffix(text, "/") && cleaned != "/" {
		cleaned += "/"
	}
	return cleaned
}

func answer(port string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body) // A body that breaks off is no body; the request was served.
		name := ""
		if r.TLS != nil {
			name = r.TLS.ServerName
		}
		paths := []string{escape(r.URL.Path), escape(clean(r.URL.Path))}
		limit := escape(strings.Join(r.Header.Values("X-Limit"), ","))
		note("request", port, escape(r.Method), paths[0], paths[1], escape(r.Host), limit, escape(name))
		fmt.Fprintf(w, "saw %s %s\n", r.Method, r.URL.Path)
	}
}

func serve(address, port string, config *tls.Config) {
	at := net.JoinHostPort(address, port)
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	protocols.SetUnencryptedHTTP2(config == nil)
	quiet := log.New(io.Discard, "", 0)
	server := &http.Server{Handler: answer(port), Protocols: protocols, ErrorLog: quiet}
	listener, err := net.Listen("tcp", at)
	if err != nil {
		log.Fatal(err)
	}
	if config == nil {
		go func() { log.Fatal(server.Serve(listener)) }()
		return
	}
	config.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		note("hello", port, escape(hello.ServerName))
		return nil, nil
	}
	server.TLSConfig = config
	go func() { log.Fatal(server.ServeTLS(listener, "", "")) }()
	socket, err := net.ListenPacket("udp", at)
	if err != nil {
		log.Fatal(err)
	}
	over := &http3.Server{Handler: answer(port), TLSConfig: http3.ConfigureTLSConfig(config.Clone())}
	go func() { log.Fatal(over.Serve(socket)) }()
}

func main() {
	address := flag.String("address", "", "address to serve on")
	chain := flag.String("certificate", "", "certificate, PEM")
	key := flag.String("key", "", "its key, PEM")
	flag.Parse()
	certificate, err := tls.LoadX509KeyPair(*chain, *key)
	if err != nil {
		log.Fatal(err)
	}
	for _, port := range []string{"80", "8081"} {
		serve(*address, port, nil)
	}
	for _, port := range []string{"443", "8444"} {
		serve(*address, port, &tls.Config{Certificates: []tls.Certificate{certificate}})
	}
	note("ready")
	select {}
}
