// Client gets a URL as programs in Go do, and prints the body and, on a line of its own, the status.
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"flag"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"runtime"
	"strings"
	"time"

	"github.com/quic-go/quic-go/http3"
)

func transport(protocol string, roots *x509.CertPool) http.RoundTripper {
	config := &tls.Config{RootCAs: roots}
	if protocol == "http3" {
		return &http3.Transport{TLSClientConfig: config}
	}
	protocols := new(http.Protocols)
	switch protocol {
	case "h2c":
		protocols.SetUnencryptedHTTP2(true)
	case "http2":
		protocols.SetHTTP2(true)
	default:
		protocols.SetHTTP1(true)
	}
	if protocol == "tls12" {
		config.MaxVersion = tls.VersionTLS12
	}
	return &http.Transport{TLSClientConfig: config, Protocols: protocols}
}

func main() {
	log.SetFlags(0)
	protocol := flag.String("protocol", "http1", "http1, h2c, tls12, tls13, mlkem, http2, http3, or version for that of Go")
	authority := flag.String("authority", "", "certificate of the authority to trust, PEM")
	within := flag.Duration("within", 4*time.Second, "waiting time")
	flag.Parse()
	if *protocol == "version" {
		fmt.Println("Go", strings.TrimPrefix(runtime.Version(), "go"))
		return
	}
	pem, err := os.ReadFile(*authority)
	if err != nil {
		log.Fatal(err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		log.Fatal("no certificate in ", *authority)
	}
	ctx, cancel := context.WithTimeout(context.Background(), *within)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, flag.Arg(0), nil)
	if err != nil {
		log.Fatal(err)
	}
	response, err := (&http.Client{Transport: transport(*protocol, roots)}).Do(request)
	if err != nil {
		log.Fatal(err)
	}
	body, err := io.ReadAll(response.Body)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s\n%d\n", body, response.StatusCode)
}
