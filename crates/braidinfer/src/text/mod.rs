//! Text processing: tokenizers, chat templates, incremental detokenization, stop strings.

mod chat_template;
mod gguf;
mod growth;
mod infill;
mod sentencepiece;
mod settings;
mod stop;
mod stream_decoder;
mod token_bytes;
mod tokenizer;

pub(crate) use gguf::write::write as write_tokenizer;

pub(crate) use chat_template::template_service;
pub use chat_template::{ChatMessage, ChatTemplate, TemplateClock};
pub use infill::InfillTokens;
pub use sentencepiece::SentencePiece;
pub use settings::TokenizerSettings;
pub use stop::{StopMatcher, overlap};
pub use stream_decoder::StreamDecoder;
pub use tokenizer::{Piece, Tokenizer};
