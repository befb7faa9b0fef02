//! The resolver's sockets: UDP and TCP, IPv4 and IPv6, on every address of its namespace.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::zone::{Query, Reply, Transport, Zone};
use crate::socket::{Datagram, UdpAny, listen};

/// Octets of the identifier (RFC 1035 §4.1.1).
const ID_OCTETS: usize = 2;

/// Serves a zone on a port of every address of the namespace it is called in, until the runtime ends.
pub fn serve(zone: &Zone, port: u16) -> Result<()> {
    let udp = UdpAny::bind(port).context("binding the resolver's UDP port")?;
    let tcp = listen(port).context("binding the resolver's TCP port")?;
    tokio::spawn(over_udp(zone.clone(), std::sync::Arc::new(udp)));
    tokio::spawn(over_tcp(zone.clone(), tcp));
    Ok(())
}

async fn over_udp(zone: Zone, socket: std::sync::Arc<UdpAny>) {
    while let Ok(question) = socket.receive().await {
        let Some((query, reply)) = zone.answer(&question.octets, Transport::Udp, question.peer) else { continue };
        if reply.after.is_zero() {
            send(&zone, &socket, &query, reply, &question).await;
        } else {
            let (zone, socket) = (zone.clone(), socket.clone());
            tokio::spawn(async move { send(&zone, &socket, &query, reply, &question).await });
        }
    }
}

async fn send(zone: &Zone, socket: &UdpAny, query: &Query, mut reply: Reply, question: &Datagram) {
    wait(&reply).await;
    identify(&mut reply, &question.octets);
    zone.note(query);
    for octets in reply.messages {
        let answer = Datagram { octets, peer: question.peer, local: question.local };
        let _ = socket.send(&answer).await; // The asker may be gone.
    }
}

async fn over_tcp(zone: Zone, listener: TcpListener) {
    while let Ok((stream, peer)) = listener.accept().await {
        let zone = zone.clone();
        tokio::spawn(async move {
            let _ = conversation(zone, stream, peer).await; // Ends when the asker closes.
        });
    }
}

async fn conversation(zone: Zone, mut stream: TcpStream, peer: SocketAddr) -> std::io::Result<()> {
    let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
    loop {
        let length = stream.read_u16().await?;
        let mut question = vec![0; usize::from(length)];
        stream.read_exact(&mut question).await?;
        let Some((query, mut reply)) = zone.answer(&question, Transport::Tcp, peer) else { continue };
        wait(&reply).await;
        identify(&mut reply, &question);
        zone.note(&query);
        for octets in reply.messages {
            let length = u16::try_from(octets.len()).map_err(std::io::Error::other)?;
            stream.write_all(&[&length.to_be_bytes()[..], &octets].concat()).await?;
        }
    }
}

/// A timer of no length still costs a turn of the clock: it is left out.
async fn wait(reply: &Reply) {
    if !reply.after.is_zero() {
        tokio::time::sleep(reply.after).await;
    }
}

fn identify(reply: &mut Reply, question: &[u8]) {
    if reply.keeps_id {
        return;
    }
    for octets in reply.messages.iter_mut().filter(|octets| octets.len() >= ID_OCTETS) {
        octets[..ID_OCTETS].copy_from_slice(&question[..ID_OCTETS]);
    }
}
