//! SentencePiece's own file, `tokenizer.model`: a protocol buffer, of which the few fields that say how text is cut are read.
//!
//! Source: `sentencepiece_model.proto` (messages `ModelProto`, `TrainerSpec`, `NormalizerSpec`).

use super::sentencepiece::{PieceKind, SentencePieceVocabulary, SpacePrefix};

/// A field of a message.
enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    Float(f32),
    Other,
}

/// The fields of a message, by number, in order.
struct Message<'a> {
    bytes: &'a [u8],
}

const DAMAGED: &str = "it is no model of sentencepiece, or it is damaged; fetch it again";

impl<'a> Message<'a> {
    fn number(&mut self) -> Result<u64, String> {
        let mut number = 0;
        for place in 0..10 {
            let (&byte, rest) = self.bytes.split_first().ok_or(DAMAGED)?;
            self.bytes = rest;
            number |= u64::from(byte & 0x7f) << (7 * place);
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(DAMAGED.into())
    }

    fn take(&mut self, count: u64) -> Result<&'a [u8], String> {
        let count = usize::try_from(count).map_err(|_| DAMAGED)?;
        let (taken, rest) = self.bytes.split_at_checked(count).ok_or(DAMAGED)?;
        self.bytes = rest;
        Ok(taken)
    }

    fn next(&mut self) -> Result<Option<(u64, Field<'a>)>, String> {
        if self.bytes.is_empty() {
            return Ok(None);
        }
        let tag = self.number()?;
        let field = match tag & 7 {
            0 => Field::Number(self.number()?),
            1 => {
                self.take(8)?;
                Field::Other
            }
            2 => {
                let length = self.number()?;
                Field::Bytes(self.take(length)?)
            }
            5 => {
                let bytes = self.take(4)?.try_into().map_err(|_| DAMAGED)?;
                Field::Float(f32::from_le_bytes(bytes))
            }
            _ => return Err(DAMAGED.into()),
        };
        Ok(Some((tag >> 3, field)))
    }
}

/// Kinds of pieces, as `ModelProto.SentencePiece.Type` numbers them.
const UNKNOWN: u64 = 2;
const CONTROL: u64 = 3;
const USER_DEFINED: u64 = 4;
const BYTE: u64 = 6;

/// Reads `tokenizer.model`.
///
/// # Errors
/// If it is damaged, or cuts text in a way that is not known here.
pub(super) fn parse(bytes: &[u8]) -> Result<SentencePieceVocabulary, String> {
    let mut vocabulary = SentencePieceVocabulary {
        byte_fallback: false,
        collapse_spaces: true,
        kind: PieceKind::Unigram,
        space: SpacePrefix::EveryPiece,
        ..SentencePieceVocabulary::default()
    };
    let mut message = Message { bytes };
    let (mut unknown, mut bos, mut eos) = (0, 1, 2);
    while let Some((number, field)) = message.next()? {
        match (number, field) {
            (1, Field::Bytes(piece)) => read_piece(&mut vocabulary, piece)?,
            (2, Field::Bytes(spec)) => {
                let mut spec = Message { bytes: spec };
                while let Some((number, field)) = spec.next()? {
                    match (number, field) {
                        (3, Field::Number(1)) => vocabulary.kind = PieceKind::Unigram,
                        (3, Field::Number(2)) => vocabulary.kind = PieceKind::Bpe,
                        (3, Field::Number(_)) => {
                            return Err(
                                "its pieces are words or characters; BPE and Unigram are read here"
                                    .into(),
                            );
                        }
                        (24, Field::Number(1)) => {
                            return Err(
                                "spaces stand behind words in it; that is not read here".into()
                            );
                        }
                        (35, Field::Number(yes)) => vocabulary.byte_fallback = yes != 0,
                        // Ids are signed: -1, in ten bytes, is none.
                        (40, Field::Number(id)) => unknown = id as i64,
                        (41, Field::Number(id)) => bos = id as i64,
                        (42, Field::Number(id)) => eos = id as i64,
                        _ => {}
                    }
                }
            }
            (3, Field::Bytes(spec)) => {
                let mut spec = Message { bytes: spec };
                while let Some((number, field)) = spec.next()? {
                    match (number, field) {
                        (2, Field::Bytes(map)) => vocabulary.charsmap = map.to_vec(),
                        (3, Field::Number(0)) => vocabulary.space = SpacePrefix::Never,
                        (4, Field::Number(yes)) => vocabulary.collapse_spaces = yes != 0,
                        (5, Field::Number(0)) => {
                            return Err("spaces stay spaces in it; that is not read here".into());
                        }
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    if vocabulary.tokens.is_empty() {
        return Err(DAMAGED.into());
    }
    let id = |id: i64| u32::try_from(id).ok();
    (vocabulary.unknown, vocabulary.bos, vocabulary.eos) = (id(unknown), id(bos), id(eos));
    Ok(vocabulary)
}

fn read_piece(vocabulary: &mut SentencePieceVocabulary, piece: &[u8]) -> Result<(), String> {
    let id = u32::try_from(vocabulary.tokens.len()).map_err(|_| DAMAGED)?;
    let (mut text, mut score, mut kind) = (String::new(), 0.0, 1);
    let mut piece = Message { bytes: piece };
    while let Some((number, field)) = piece.next()? {
        match (number, field) {
            (1, Field::Bytes(bytes)) => {
                text = String::from_utf8(bytes.to_vec()).map_err(|_| DAMAGED)?;
            }
            (2, Field::Float(value)) => score = value,
            (3, Field::Number(value)) => kind = value,
            _ => {}
        }
    }
    match kind {
        UNKNOWN | CONTROL => vocabulary.control.push(id),
        USER_DEFINED => vocabulary.user_defined.push(id),
        BYTE => vocabulary.bytes.push(id),
        _ => {}
    }
    vocabulary.tokens.push(text);
    vocabulary.scores.push(score);
    Ok(())
}
