//! Checks of tokenizer and chat template.

use super::Finding;
use crate::Advice;
use crate::loading::ModelParts;
use crate::text::{ChatMessage, Tokenizer};

const AREA: &str = "text";

/// Text that must survive encoding and decoding unchanged.
const ROUND_TRIP: &str = "Two lines,\nwith 3 numbers: 12.5, 7 and 1000; and words like naïve, Straße, 東京.";

pub(super) fn findings(parts: &ModelParts) -> Vec<Finding> {
    let Some(tokenizer) = &parts.tokenizer else {
        let fix = "add tokenizer.json or tokenizer.model; without them the model takes and gives token ids";
        let found = parts.other_tokenizer.as_deref().unwrap_or("none");
        let missing = Finding::warn(AREA, "tokenizer", found, fix);
        return [missing].into_iter().chain(faulty_template(parts)).collect();
    };
    let mut findings = vec![size(parts, tokenizer), round_trip(tokenizer)];
    findings.extend(first_token(parts, tokenizer));
    findings.push(end_tokens(parts, tokenizer));
    findings.push(chat(parts, tokenizer));
    findings
}

fn size(parts: &ModelParts, tokenizer: &Tokenizer) -> Finding {
    const WHAT: &str = "vocabulary";
    let (tokens, rows) = (tokenizer.vocab_size(), parts.spec.vocab_size);
    let found = format!("{tokens} tokens, {rows} rows of the embedding");
    if tokens > rows {
        return Finding::fail(
            AREA,
            WHAT,
            found,
            "the tokenizer is that of another model: take the one beside the weights",
        );
    }
    Finding::pass(AREA, WHAT, found)
}

fn round_trip(tokenizer: &Tokenizer) -> Finding {
    const WHAT: &str = "text comes back from its tokens";
    let back = tokenizer.encode(ROUND_TRIP, false).and_then(|ids| tokenizer.decode(&ids, true));
    match back {
        Err(error) => Finding::fail(AREA, WHAT, error.to_string(), "correct the tokenizer's files"),
        // Some tokenizers add a space at the beginning of every text.
        Ok(back) if back.trim_start() == ROUND_TRIP => Finding::pass(AREA, WHAT, "it does"),
        Ok(back) => {
            let fix = "nothing if the tokenizer is meant to normalise text, or to know few characters";
            Finding::warn(AREA, WHAT, format!("{ROUND_TRIP:?} became {back:?}"), fix)
        }
    }
}

/// Checks that a prompt begins with exactly one BOS token.
fn first_token(parts: &ModelParts, tokenizer: &Tokenizer) -> Option<Finding> {
    const WHAT: &str = "prompts begin with one first token";
    let bos = parts.generation.bos_token_id?;
    let prompt = tokenizer.encode_prompt("Once").ok()?;
    let count = prompt.iter().take_while(|id| **id == bos).count();
    Some(match count {
        0 => Finding::pass(AREA, WHAT, format!("none: this tokenizer puts no token {bos} there")),
        1 => Finding::pass(AREA, WHAT, format!("token {bos}")),
        _ => {
            let fix = "the tokenizer adds it more than once: correct its post-processor";
            Finding::fail(AREA, WHAT, format!("token {bos}, {count} times"), fix)
        }
    })
}

fn end_tokens(parts: &ModelParts, tokenizer: &Tokenizer) -> Finding {
    const WHAT: &str = "tokens that end an answer";
    let ids = &parts.generation.eos_token_id;
    if ids.is_empty() {
        let fix = Advice::from("set eos_token_id in generation_config.json, or answers end only with ")
            .then_name("max_tokens")
            .then(" or the context");
        return Finding::warn(AREA, WHAT, "none", fix);
    }
    match ids.iter().find(|id| **id as usize >= parts.spec.vocab_size || tokenizer.id_to_token(**id).is_none()) {
        Some(id) => Finding::fail(
            AREA,
            WHAT,
            format!("{id}, which is no token"),
            "correct eos_token_id in generation_config.json",
        ),
        None => {
            let names: Vec<_> = ids.iter().filter_map(|id| tokenizer.id_to_token(*id)).collect();
            Finding::pass(AREA, WHAT, names.join(", "))
        }
    }
}

const CHAT_TEMPLATE: &str = "chat template";

/// The finding about a chat template that cannot be used.
fn faulty_template(parts: &ModelParts) -> Option<Finding> {
    let fault = parts.chat_template.fault()?;
    Some(Finding::fail(AREA, CHAT_TEMPLATE, fault.to_string(), "correct chat_template"))
}

fn chat(parts: &ModelParts, tokenizer: &Tokenizer) -> Finding {
    const WHAT: &str = CHAT_TEMPLATE;
    if let Some(fault) = faulty_template(parts) {
        return fault;
    }
    let Some(template) = parts.chat_template.usable() else {
        return Finding::pass(AREA, WHAT, "none: the model completes text");
    };
    let messages = [ChatMessage::new("user", "Hello")];
    let encoded = template.render(&messages, true).and_then(|rendered| tokenizer.encode_chat(&rendered));
    let ids = match encoded {
        Ok(ids) => ids,
        Err(error) => return Finding::fail(AREA, WHAT, error.to_string(), "correct chat_template"),
    };
    // Only at the beginning: where the first token is also the header of roles, it stands before each message.
    let firsts = parts.generation.bos_token_id.map_or(0, |bos| ids.iter().take_while(|id| **id == bos).count());
    if firsts > 1 {
        let fix = "the template and the tokenizer both add the first token: remove it from one of them";
        return Finding::warn(AREA, WHAT, format!("a chat begins with {firsts} first tokens"), fix);
    }
    Finding::pass(AREA, WHAT, format!("{} tokens for a chat of one word", ids.len()))
}
