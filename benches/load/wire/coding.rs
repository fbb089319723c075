//! Decoder of a compressed body, piece by piece.

use flate2::write::GzDecoder;
use std::io::Write as _;
use zstd_safe::{DCtx, InBuffer, OutBuffer};

/// Content coding that the clients ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Coding {
    /// gzip
    Gzip,
    /// Zstandard
    Zstd,
}

/// State of one body.
pub(crate) enum Decoder {
    Gzip(Box<GzDecoder<Vec<u8>>>),
    Zstd(DCtx<'static>, Vec<u8>),
}

/// 64 KiB: bytes that are decoded at once.
const PIECE_MAX: usize = 64 * 1024;

impl Coding {
    /// Returns the value of `Accept-Encoding`.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        }
    }
}

impl Decoder {
    /// Returns a decoder for the beginning of a body.
    pub(crate) fn new(coding: Coding) -> Self {
        match coding {
            Coding::Gzip => Self::Gzip(Box::new(GzDecoder::new(Vec::new()))),
            Coding::Zstd => Self::Zstd(DCtx::create(), Vec::new()),
        }
    }

    /// Decodes a piece of the body, cut anywhere. Returns what it completes; nothing if it is broken.
    pub(crate) fn push(&mut self, body: &[u8]) -> &[u8] {
        match self {
            Self::Gzip(decoder) => {
                decoder.get_mut().clear();
                if decoder
                    .write_all(body)
                    .and_then(|()| decoder.flush())
                    .is_err()
                {
                    decoder.get_mut().clear();
                }
                decoder.get_ref()
            }
            Self::Zstd(context, plain) => {
                plain.clear();
                let mut input = InBuffer::around(body);
                loop {
                    let before = plain.len();
                    plain.reserve(PIECE_MAX);
                    let mut output = OutBuffer::around_pos(plain, before);
                    if context.decompress_stream(&mut output, &mut input).is_err() {
                        plain.clear();
                        break;
                    }
                    let is_over = input.pos() == body.len() && plain.len() < plain.capacity();
                    if is_over {
                        break;
                    }
                }
                plain
            }
        }
    }
}
