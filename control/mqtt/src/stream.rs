//! Packets out of a stream of bytes, and into one.

use std::collections::VecDeque;
use std::io;

use bytes::BytesMut;
use rumqttc::mqttbytes::v4::{Packet, Publish};
use rumqttc::mqttbytes::{Error as CodecError, QoS};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::outbox::Outgoing;

/// Most bytes that are put together for one write.
const WRITE_BYTES: usize = 64 * 1024;

/// Why a stream of packets ended.
#[derive(Debug, Error)]
pub enum StreamError {
    /// The network or TLS failed.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The bytes are no packet, or one that is too large.
    #[error("malformed packet: {0}")]
    Malformed(CodecError),
}

/// Takes packets out of a stream of bytes.
#[derive(Debug)]
pub struct PacketReader<R> {
    stream: R,
    buffer: BytesMut,
    bytes_max: usize,
}

impl<R> PacketReader<R> {
    /// Reads packets of at most so many bytes.
    pub fn new(stream: R, bytes_max: usize) -> Self {
        Self { stream, buffer: BytesMut::new(), bytes_max }
    }

    /// Splits the stream, so that it can be written to beside.
    pub fn split<S, W>(self, with: impl FnOnce(R) -> (S, W)) -> (PacketReader<S>, W) {
        let (reading, writing) = with(self.stream);
        (PacketReader { stream: reading, buffer: self.buffer, bytes_max: self.bytes_max }, writing)
    }
}

impl<R: AsyncRead + Unpin> PacketReader<R> {
    /// The next packet. Can be cancelled.
    ///
    /// # Errors
    /// When the stream ends or does not hold a packet.
    pub async fn next(&mut self) -> Result<Packet, StreamError> {
        loop {
            match Packet::read(&mut self.buffer, self.bytes_max) {
                Ok(packet) => {
                    if self.buffer.is_empty() {
                        // An idle connection keeps no buffer.
                        self.buffer = BytesMut::new();
                    }
                    return Ok(packet);
                }
                Err(CodecError::InsufficientBytes(_)) => {}
                Err(error) => return Err(StreamError::Malformed(error)),
            }
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
        }
    }
}

/// Puts packets into a stream of bytes.
#[derive(Debug)]
pub struct PacketWriter<W> {
    stream: W,
    packet_id: u16,
}

impl<W: AsyncWrite + Unpin> PacketWriter<W> {
    /// Writes to a stream.
    pub fn new(stream: W) -> Self {
        Self { stream, packet_id: 0 }
    }

    /// Writes one packet.
    ///
    /// # Errors
    /// When the stream fails or the packet can't be encoded.
    pub async fn write(&mut self, packet: Packet) -> Result<(), StreamError> {
        self.write_all([Outgoing::Packet(packet)].into()).await
    }

    /// Writes everything that waits, in as few writes as its size allows.
    ///
    /// # Errors
    /// When the stream fails or a packet can't be encoded.
    pub async fn write_all(&mut self, mut waiting: VecDeque<Outgoing>) -> Result<(), StreamError> {
        let mut buffer = BytesMut::new();
        while let Some(outgoing) = waiting.pop_front() {
            let packet = match outgoing {
                Outgoing::Packet(packet) => packet,
                Outgoing::Publish(message, qos) => {
                    let mut publish = Publish::from_bytes(&*message.topic, qos, message.payload);
                    if qos != QoS::AtMostOnce {
                        self.packet_id = self.packet_id.checked_add(1).unwrap_or(1);
                        publish.pkid = self.packet_id;
                    }
                    Packet::Publish(publish)
                }
            };
            packet.write(&mut buffer, usize::MAX).map_err(StreamError::Malformed)?;
            if buffer.len() >= WRITE_BYTES || waiting.is_empty() {
                self.stream.write_all(&buffer).await?;
                buffer.clear();
            }
        }
        self.stream.flush().await?;
        Ok(())
    }

    /// Closes the stream for writing.
    ///
    /// # Errors
    /// When the stream fails.
    pub async fn shutdown(mut self) -> Result<(), StreamError> {
        Ok(self.stream.shutdown().await?)
    }
}
