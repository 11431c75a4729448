//! Checks of the model description and the weights.

use braidinfer_model::arch::REGISTRY;
use braidinfer_model::spec::RopeScaling;

use super::Finding;
use crate::Advice;
use crate::loading::ModelParts;

const AREA: &str = "files";

pub(super) fn findings(parts: &ModelParts) -> Vec<Finding> {
    let mut findings = vec![architecture(parts), weights(parts)];
    findings.extend(parts.weights.notes().iter().map(|note| {
        let fix = "nothing if the tensors are meant to be there; otherwise the config lacks what calls for them";
        Finding::warn(AREA, "every tensor is used", note.clone(), fix)
    }));
    if parts.weights.notes().is_empty() {
        findings.push(Finding::pass(AREA, "every tensor is used", "no tensor that the config does not call for"));
    }
    findings.push(rope(parts));
    findings
}

/// Whether the architecture is tested against fixtures from `transformers`.
fn architecture(parts: &ModelParts) -> Finding {
    let model_type = &parts.spec.model_type;
    let known = REGISTRY.iter().find(|known| known.model_type == model_type || known.aliases.contains(&&**model_type));
    let fixtures = known.map_or(0, |known| known.fixtures.len());
    let found = format!("{model_type}, held to transformers by {fixtures} fixtures");
    match fixtures {
        0 => Finding::warn(AREA, "architecture", found, "compare some answers with transformers before you rely on it"),
        _ => Finding::pass(AREA, "architecture", found),
    }
}

/// Whether every value is finite.
fn weights(parts: &ModelParts) -> Finding {
    const WHAT: &str = "every weight is finite";
    let bad = parts.weights.iter().find_map(|(_, _, view)| view.check().err());
    match bad {
        Some(error) => Finding::fail(AREA, WHAT, error.to_string(), "fetch or convert the checkpoint again"),
        None => {
            let count = parts.weights.parameter_count();
            Finding::pass(AREA, WHAT, format!("{count} parameters, mostly {}", parts.weights.dtype()))
        }
    }
}

fn rope(parts: &ModelParts) -> Finding {
    const WHAT: &str = "positions";
    let scaling =
        |scaling: &RopeScaling| serde_json::to_value(scaling).ok()?.get("rope_type")?.as_str().map(str::to_owned);
    let tables = parts.spec.rope.iter().map(|rope| {
        format!(
            "base {}, {} of {} dimensions, {}",
            rope.rope_theta,
            rope.rotary_dim,
            parts.spec.attentions[0].head_dim,
            scaling(&rope.scaling).unwrap_or_default()
        )
    });
    let (meant, context) = (parts.spec.context_length(), parts.context);
    let found = format!("RoPE {}; context {context} of {meant}", tables.collect::<Vec<_>>().join("; "));
    if context > meant {
        let fix = Advice::from("ask for no longer ").then_name("context").then(" than the model is meant for");
        return Finding::warn(AREA, WHAT, found, fix);
    }
    Finding::pass(AREA, WHAT, found)
}
