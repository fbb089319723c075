//! Any selection of blocks, decoded as a client does.

use std::io::Read as _;

use proptest::prelude::*;

use super::*;

/// Decodes an event stream; `None` if it is broken.
fn decode(coding: Coding, stream: &[u8]) -> Option<Vec<u8>> {
    let mut plain = Vec::new();
    match coding {
        Coding::Gzip => {
            let mut decoder = flate2::bufread::GzDecoder::new(stream);
            decoder.read_to_end(&mut plain).ok()?;
            assert!(decoder.into_inner().is_empty(), "one member is everything");
        }
        Coding::Zstd => {
            plain.reserve(4 << 20);
            zstd_safe::decompress(&mut plain, stream).ok()?;
        }
    }
    Some(plain)
}

/// Piece of an event stream.
#[derive(Clone, Debug)]
enum Piece {
    Compressed(Vec<u8>),
    Stored(Vec<u8>),
}

impl Piece {
    fn plain(&self) -> &[u8] {
        match self {
            Self::Compressed(plain) | Self::Stored(plain) => plain,
        }
    }
}

/// Text with repetitions of all lengths: what repeated offsets are for.
fn text() -> impl Strategy<Value = Vec<u8>> {
    let part = prop_oneof![
        "[a-z0-9]{1,40}",
        ("[a0 =]{1,8}", 1usize..60).prop_map(|(text, times)| text.repeat(times)),
        Just(r#"{"type":"order.updated","price":180.18,"note":"é"}"#.to_owned()),
    ];
    prop::collection::vec(part, 1..8).prop_map(|parts| parts.concat().into_bytes())
}

fn piece() -> impl Strategy<Value = Piece> {
    prop_oneof![
        4 => text().prop_map(Piece::Compressed),
        1 => text().prop_map(Piece::Stored),
        1 => prop::collection::vec(any::<u8>(), 0..200).prop_map(Piece::Compressed),
    ]
}

/// Returns the bytes that a client of these pieces receives.
fn stream(coding: Coding, pieces: &[Piece]) -> Vec<u8> {
    let (mut out, mut checksum) = (BytesMut::from(coding.head()), Checksum::default());
    for piece in pieces {
        match piece {
            Piece::Compressed(plain) => {
                let block = coding.block(plain, true, Envelope::NONE);
                assert_eq!(block.size().plain, plain.len());
                assert_eq!(block.size().sent, block.bytes().content().len());
                out.put_slice(block.bytes().content());
                checksum = checksum.after_block(block.size().checksum);
            }
            Piece::Stored(plain) => {
                coding.put_stored(&mut out, plain);
                checksum = coding.checksum(checksum, plain);
            }
        }
    }
    coding.put_tail(&mut out, checksum);
    out.to_vec()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    /// A client can begin with any block, and can miss any.
    #[test]
    fn any_selection_of_blocks_is_one_stream(
        pieces in prop::collection::vec(piece(), 0..8),
        kept in prop::collection::vec(any::<bool>(), 8),
    ) {
        let kept = pieces.iter().zip(kept).filter(|(_, is_kept)| *is_kept);
        let kept: Vec<Piece> = kept.map(|(piece, _)| piece.clone()).collect();
        let plain: Vec<u8> = kept.iter().flat_map(|piece| piece.plain().to_vec()).collect();
        for coding in Coding::ALL {
            let decoded = decode(coding, &stream(coding, &kept));
            prop_assert_eq!(decoded.as_ref(), Some(&plain));
        }
    }

    /// Blocks of ours do not depend on what an ordinary compressor leaves: distances and tables.
    #[test]
    fn a_block_of_zstandard_follows_any_other_block(before in text(), text in text()) {
        let mut context = zstd_safe::CCtx::create();
        context.set_parameter(zstd_safe::CParameter::ContentSizeFlag(false)).unwrap();
        let mut frame = Vec::with_capacity(1 << 20);
        context.compress2(&mut frame, &before).unwrap();
        let mut out = BytesMut::from(Coding::Zstd.head());
        let mut rest = &frame[6..];
        while !rest.is_empty() {
            let header = u32::from_le_bytes([rest[0], rest[1], rest[2], 0]);
            let len = if header >> 1 & 3 == 1 { 1 } else { header as usize >> 3 };
            out.put_uint_le(u64::from(header & !1), 3);
            out.put_slice(&rest[3..3 + len]);
            rest = &rest[3 + len..];
        }
        out.put_slice(Coding::Zstd.block(&text, true, Envelope::NONE).bytes().content());
        Coding::Zstd.put_tail(&mut out, Checksum::default());
        prop_assert_eq!(decode(Coding::Zstd, &out), Some([before, text].concat()));
    }
}

#[test]
fn large_events_are_coded_in_pieces() {
    let text: String = (0..120_000).map(|number| format!("{number},")).collect();
    for coding in Coding::ALL {
        for is_compressed in [true, false] {
            let block = coding.block(text.as_bytes(), is_compressed, Envelope::NONE);
            assert_eq!(
                block.size().sent < text.len() / 2,
                is_compressed,
                "{coding:?}"
            );
            let pieces = [Piece::Compressed(text.clone().into_bytes())];
            let decoded = decode(coding, &stream(coding, &pieces));
            assert_eq!(decoded.as_deref(), Some(text.as_bytes()), "{coding:?}");
        }
    }
}

#[test]
fn bytes_that_do_not_shrink_are_stored() {
    let random: Vec<u8> = (0..5000).map(|_| fastrand::u8(..)).collect();
    for coding in Coding::ALL {
        let block = coding.block(&random, true, Envelope::NONE);
        assert!(block.size().sent <= random.len() + 5, "{coding:?}");
        let pieces = [Piece::Compressed(random.clone())];
        assert_eq!(
            decode(coding, &stream(coding, &pieces)).as_ref(),
            Some(&random)
        );
    }
}

#[test]
fn heartbeats_add_a_few_bytes() {
    for (coding, most) in [(Coding::Gzip, 5), (Coding::Zstd, 3)] {
        let mut out = BytesMut::new();
        coding.put_stored(&mut out, b": hb\n");
        assert_eq!(out.len(), 5 + most, "{coding:?}");
    }
}
