// Server answers HTTP/1.1, 2 and 3 with what it saw of the request, as JSON, and writes a line of the same for each
// connection and request to standard output. Each port takes one form of TLS, so that an answer proves the form.
package main

import (
	"crypto/tls"
	"encoding/json"
	"flag"
	"log"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"

	"github.com/quic-go/quic-go/http3"
)

// What the server saw of one request.
type seen struct {
	Proto    string `json:"proto"`
	Host     string `json:"host"`
	TLS      string `json:"tls"`
	Group    string `json:"group"`
	Upgrade  string `json:"upgrade"`
	Settings string `json:"settings"`
}

// A port and the TLS that it takes; none is plain HTTP.
type port struct {
	number string
	tls    *tls.Config
	http3  bool
}

var (
	output = json.NewEncoder(os.Stdout)
	lock   sync.Mutex
)

func say(what any) {
	lock.Lock()
	defer lock.Unlock()
	if err := output.Encode(what); err != nil {
		log.Fatal(err)
	}
}

func answer(w http.ResponseWriter, r *http.Request) {
	found := seen{
		Proto:    r.Proto,
		Host:     r.Host,
		Upgrade:  strings.Join(r.Header.Values("Upgrade"), ","),
		Settings: strings.Join(r.Header.Values("HTTP2-Settings"), ","),
	}
	if r.TLS != nil {
		found.TLS = tls.VersionName(r.TLS.Version)
		if r.TLS.CurveID != 0 {
			found.Group = r.TLS.CurveID.String()
		}
	}
	say(map[string]any{"request": found})
	w.Header().Set("Content-Type", "text/plain")
	if err := json.NewEncoder(w).Encode(found); err != nil {
		log.Print(err)
	}
}

// Every name that a client asks for by TLS is told before the handshake goes on.
func form(certificate tls.Certificate, from, to uint16, groups []tls.CurveID, protocols ...string) *tls.Config {
	return &tls.Config{
		Certificates:     []tls.Certificate{certificate},
		MinVersion:       from,
		MaxVersion:       to,
		CurvePreferences: groups,
		NextProtos:       protocols,
		GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			say(map[string]string{"hello": hello.ServerName})
			return nil, nil
		},
	}
}

func serve(address string, port port) {
	at := net.JoinHostPort(address, port.number)
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	protocols.SetUnencryptedHTTP2(port.tls == nil)
	server := &http.Server{Handler: http.HandlerFunc(answer), Protocols: protocols, TLSConfig: port.tls}
	listener, err := net.Listen("tcp", at)
	if err != nil {
		log.Fatal(err)
	}
	if port.tls == nil {
		go func() { log.Fatal(server.Serve(listener)) }()
		return
	}
	go func() { log.Fatal(server.ServeTLS(listener, "", "")) }()
	if port.http3 {
		socket, err := net.ListenPacket("udp", at)
		if err != nil {
			log.Fatal(err)
		}
		over := &http3.Server{Handler: http.HandlerFunc(answer), TLSConfig: http3.ConfigureTLSConfig(port.tls)}
		go func() { log.Fatal(over.Serve(socket)) }()
	}
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
	classical, hybrid := []tls.CurveID{tls.X25519, tls.CurveP256}, []tls.CurveID{tls.X25519MLKEM768}
	for _, port := range []port{
		{number: "9080"},
		{number: "9412", tls: form(certificate, tls.VersionTLS12, tls.VersionTLS12, classical, "http/1.1")},
		{number: "9413", tls: form(certificate, tls.VersionTLS13, tls.VersionTLS13, classical, "http/1.1")},
		{number: "9468", tls: form(certificate, tls.VersionTLS13, tls.VersionTLS13, hybrid, "http/1.1")},
		{number: "9443", tls: form(certificate, tls.VersionTLS12, tls.VersionTLS13, nil, "h2", "http/1.1"), http3: true},
	} {
		serve(*address, port)
	}
	say("ready")
	select {}
}
