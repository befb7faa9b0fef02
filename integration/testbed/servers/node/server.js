// Node's HTTP on the ports of the gauntlet: a line for each ClientHello and each request.
'use strict';
const fs = require('node:fs');
const http = require('node:http');
const https = require('node:https');
const tls = require('node:tls');

const [address, certificate, key] = process.argv.slice(2);

// What is not visible ASCII as \xHH, so that fields stay apart.
const escape = (text) => {
  const bytes = Buffer.from(text ?? '', 'latin1');
  return Array.from(bytes, (b) =>
    b > 0x20 && b < 0x7f && b !== 0x5c ? String.fromCharCode(b) : '\\x' + b.toString(16).padStart(2, '0')).join('');
};
const note = (...fields) => fs.writeSync(1, fields.join('\t') + '\n');

// The path as a router reads it: that of the URL, decoded.
const read = (target) => {
  try {
    const url = new URL(target, 'http://none.test');
    const path = unescape(url.pathname);
    return { path, host: /^[a-z]+:\/\//i.test(target) ? url.host : undefined };
  } catch {
    return { path: target };
  }
};

const noteRequest = (port, method, target, host, limit, name) => {
  const { path, host: named } = read(target);
  note('request', port, escape(method), escape(path), '', escape(named ?? host), escape(limit), escape(name || ''));
  return `saw ${method} ${path}\n`;
};

const answer = (port) => (request, response) => {
  request.on('error', () => {});
  request.resume();
  request.on('end', () => {
    const limits = request.rawHeaders ?? [];
    const limit = limits.filter((_, at) => at % 2 === 1 && limits[at - 1].toLowerCase() === 'x-limit').join(',');
    const host = request.headers[':authority'] ?? request.headers.host;
    const body = noteRequest(port, request.method, request.url, host, limit, request.socket?.servername);
    // A server that changes the protocol although nobody asked for it.
    if (request.url.includes('?101')) {
      change(port, request.socket, 'echo');
      return;
    }
    response.writeHead(200, { 'content-length': Buffer.byteLength(body) });
    response.end(body);
  });
};

// Every change of protocol is granted; what follows is read as requests, save for WebSocket.
const change = (port, socket, word) => {
  socket.on('error', () => {});
  socket.write(`HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: ${word}\r\n\r\n`);
  if (word.toLowerCase() === 'websocket') return;
  socket.on('data', (data) => {
    const text = data.toString('latin1');
    for (const [, method, target, fields] of text.matchAll(/([A-Z]+) (\S+) HTTP\/1\.1\r\n([^]*?)\r\n\r\n/g)) {
      const host = /^host: (.*)$/im.exec(fields)?.[1] ?? '';
      socket.write(noteRequest(port, method, target, host, '', ''));
    }
  });
};

const serve = (server, port) => {
  server.on('upgrade', (request, socket) => {
    noteRequest(port, request.method, request.url, request.headers.host, request.headers['x-limit'], socket.servername);
    change(port, socket, request.headers.upgrade ?? '');
  });
  server.on('clientError', (_, socket) => socket.destroy());
  server.on('tlsClientError', () => {});
  return new Promise((ready) => server.listen(port, address, 512, ready));
};

const context = tls.createSecureContext({ cert: fs.readFileSync(certificate), key: fs.readFileSync(key) });
const secure = (port) => ({
  cert: fs.readFileSync(certificate),
  key: fs.readFileSync(key),
  SNICallback: (name, done) => {
    note('hello', port, escape(name));
    done(null, context);
  },
});
process.on('uncaughtException', () => {});

Promise.all([
  serve(http.createServer(answer(80)), 80),
  serve(http.createServer(answer(8081)), 8081),
  serve(https.createServer(secure(443), answer(443)), 443),
  serve(https.createServer(secure(8444), answer(8444)), 8444),
]).then(() => note('ready'));
