//! RoPE settings of `config.json` in the old style (top-level `rope_theta` and `rope_scaling`) and in the new one
//! (`rope_parameters`).

use crate::rope::yarn_mscale;
use crate::spec::{RopePairing, RopeScaling, RopeSpec};
use crate::{JsonFile, Result};

/// Values for missing config fields.
pub(super) struct RopeDefaults {
    pub rope_theta: f64,
    pub partial_rotary_factor: f64,
    pub pairing: RopePairing,
    /// Length before scaling, if the class has one; it takes precedence over a nested value.
    pub original_max_position_embeddings: Option<usize>,
}

/// Rotary settings of a kind of layers, if the config has none.
pub(super) struct RopeAbsent {
    pub rope_theta: f64,
    /// Share of the pairs that turn, with proportional frequencies.
    pub proportional: Option<f64>,
}

/// Kinds of layers with RoPE settings of their own.
pub(super) const KINDS: [&str; 2] = ["full_attention", "sliding_attention"];

/// The model's only rotary table.
///
/// A non-null `rope_scaling` replaces `rope_parameters` as a whole; fields of the one that is used take precedence over
/// top-level fields.
pub(super) fn rope(
    config: &JsonFile,
    defaults: &RopeDefaults,
    head_dim: usize,
    max_position_embeddings: usize,
) -> Result<RopeSpec> {
    let settings = settings(config)?;
    rope_from(config, settings.as_ref(), defaults, head_dim, max_position_embeddings)
}

/// The settings object that is used; an empty `rope_scaling` counts as absent.
pub(super) fn settings(config: &JsonFile) -> Result<Option<JsonFile>> {
    match config.object("rope_scaling")?.filter(|settings| !settings.is_empty()) {
        Some(settings) => Ok(Some(settings)),
        None => config.object("rope_parameters"),
    }
}

/// The tables of full and of sliding layers, in this order: nested settings per kind of layer, or those of the old
/// style, which are the full layers'. `sliding_theta` is the class's theta of sliding layers.
///
/// Without nested settings the sliding layers have `rope_local_base_freq` or the class's theta, as in transformers,
/// which reads a top-level `rope_theta` for full layers only.
pub(super) fn two_tables(
    config: &JsonFile,
    defaults: &RopeDefaults,
    sliding_theta: f64,
    head_dim: usize,
    max_position_embeddings: usize,
) -> Result<[RopeSpec; 2]> {
    let (full, sliding) = (full_settings(config)?, nested_settings(config, "sliding_attention")?);
    let table = |settings: Option<&JsonFile>| rope_from(config, settings, defaults, head_dim, max_position_embeddings);
    let mut tables = [table(full.as_ref())?, table(sliding.as_ref())?];
    let theta = sliding.map(|sliding| sliding.positive("rope_theta")).transpose()?.flatten();
    tables[1].rope_theta = theta.or(config.positive("rope_local_base_freq")?).unwrap_or(sliding_theta);
    // transformers looks for this field beside the kinds of layers, and ignores it in their settings.
    let outer = config.object("rope_parameters")?.map(|parameters| parameters.flag("truncate")).transpose()?.flatten();
    for table in &mut tables {
        if let RopeScaling::Yarn { truncate, .. } = &mut table.scaling {
            *truncate = outer.unwrap_or(true);
        }
    }
    Ok(tables)
}

/// Fails on RoPE settings that are not nested per kind of layers, where a class reads no others.
pub(super) fn check_nested(config: &JsonFile) -> Result<()> {
    let parameters = config.object("rope_parameters")?.filter(|parameters| !parameters.is_empty());
    if parameters.is_some_and(|parameters| !KINDS.into_iter().any(|kind| parameters.has(kind))) {
        let expected = format!("settings for each kind of layers: {}", KINDS.join(", "));
        return Err(config.error("rope_parameters", expected, "settings for all layers"));
    }
    if config.object("rope_scaling")?.is_some_and(|scaling| !scaling.is_empty()) {
        return Err(config.error("rope_scaling", "nothing, but `rope_parameters`", "RoPE settings of the old style"));
    }
    Ok(())
}

/// The rotary table of a kind of layers, whose settings are nested, and of which fewer pairs may turn.
pub(super) fn table_of_kind(
    config: &JsonFile,
    layers: &str,
    head_dim: usize,
    max_position_embeddings: usize,
    absent: &RopeAbsent,
) -> Result<RopeSpec> {
    let settings = nested_settings(config, layers)?;
    let plain = |rope_theta: f64, scaling: RopeScaling| RopeSpec {
        pairing: RopePairing::HalfSplit,
        rotary_dim: head_dim,
        rope_theta,
        scaling,
    };
    // Of the whole width, also where fewer pairs turn.
    let proportional = |share: f64, factor: f64| RopeScaling::Proportional {
        rotated_pairs: ((share * head_dim as f64) as usize / 2).min(head_dim / 2),
        factor,
    };
    let Some(settings) = settings else {
        let scaling = absent.proportional.map_or(RopeScaling::Default, |share| proportional(share, 1.0));
        return Ok(plain(absent.rope_theta, scaling));
    };
    let theta = settings.positive("rope_theta")?.unwrap_or(absent.rope_theta);
    match settings.text("rope_type")? {
        None | Some("default") => Ok(plain(theta, RopeScaling::Default)),
        Some("proportional") => {
            let share = settings.positive("partial_rotary_factor")?.unwrap_or(1.0);
            Ok(plain(theta, proportional(share, settings.positive("factor")?.unwrap_or(1.0))))
        }
        Some(_) => {
            let defaults = RopeDefaults {
                rope_theta: absent.rope_theta,
                partial_rotary_factor: 1.0,
                pairing: RopePairing::HalfSplit,
                original_max_position_embeddings: None,
            };
            rope_from(config, Some(&settings), &defaults, head_dim, max_position_embeddings)
        }
    }
}

pub(super) fn nested_settings(config: &JsonFile, layers: &str) -> Result<Option<JsonFile>> {
    let parameters = config.object("rope_parameters")?;
    parameters.map(|parameters| parameters.object(layers)).transpose().map(Option::flatten)
}

/// RoPE settings of full-attention layers: the new-style settings, overwritten by an old-style `rope_scaling`.
///
/// In the old style only the key `rope_type` counts: transformers ignores an older `type` key alone, and published
/// models that rely on scaling have `rope_type`.
fn full_settings(config: &JsonFile) -> Result<Option<JsonFile>> {
    let nested = nested_settings(config, "full_attention")?;
    match (config.object("rope_scaling")?, nested) {
        (Some(scaling), Some(nested)) => Ok(Some(nested.overlaid(&scaling))),
        (Some(scaling), None) if scaling.has("rope_type") => Ok(Some(scaling)),
        (Some(_), None) => Ok(None),
        (None, nested) => Ok(nested),
    }
}

/// A rotary table from a settings object, with top-level fields of the config as fallback.
pub(super) fn rope_from(
    config: &JsonFile,
    settings: Option<&JsonFile>,
    defaults: &RopeDefaults,
    head_dim: usize,
    max_position_embeddings: usize,
) -> Result<RopeSpec> {
    let either = |field: &str| match settings.map(|settings| settings.positive(field)).transpose()?.flatten() {
        Some(value) => Ok(Some(value)),
        None => config.positive(field),
    };
    let partial = either("partial_rotary_factor")?.unwrap_or(defaults.partial_rotary_factor);
    let rotary_dim = (head_dim as f64 * partial) as usize;
    let scaling = match settings {
        Some(settings) => {
            let original =
                match config.size("original_max_position_embeddings")?.or(defaults.original_max_position_embeddings) {
                    Some(original) => original,
                    None => settings.size("original_max_position_embeddings")?.unwrap_or(max_position_embeddings),
                };
            scaling(settings, rotary_dim, original, max_position_embeddings)?
        }
        None => RopeScaling::Default,
    };
    Ok(RopeSpec {
        pairing: defaults.pairing,
        rotary_dim,
        rope_theta: either("rope_theta")?.unwrap_or(defaults.rope_theta),
        scaling,
    })
}

fn scaling(
    settings: &JsonFile,
    rotary_dim: usize,
    original: usize,
    max_position_embeddings: usize,
) -> Result<RopeScaling> {
    let field = if settings.has("rope_type") { "rope_type" } else { "type" };
    match settings.text(field)? {
        None | Some("default") => Ok(RopeScaling::Default),
        Some("linear") => Ok(RopeScaling::Linear { factor: settings.required_positive("factor")? }),
        Some("dynamic") => Ok(RopeScaling::Dynamic {
            factor: settings.required_positive("factor")?,
            original_max_position_embeddings: max_position_embeddings,
        }),
        Some("llama3") => Ok(RopeScaling::Llama3 {
            factor: settings.required_positive("factor")?,
            low_freq_factor: settings.required_positive("low_freq_factor")?,
            high_freq_factor: settings.required_positive("high_freq_factor")?,
            original_max_position_embeddings: original,
        }),
        // Early Phi-3 configs call longrope `su`, or `yarn` together with the two lists.
        Some("yarn") if !settings.has("short_factor") => yarn(settings, original, max_position_embeddings),
        Some("longrope" | "su" | "yarn") => longrope(settings, rotary_dim, original, max_position_embeddings),
        Some(other) => {
            let expected = "default, linear, dynamic, llama3, yarn or longrope";
            Err(settings.error(field, expected, format!("`{other}`")))
        }
    }
}

fn yarn(settings: &JsonFile, original: usize, max_position_embeddings: usize) -> Result<RopeScaling> {
    let factor = settings.positive("factor")?.unwrap_or(max_position_embeddings as f64 / original as f64);
    let mscale = |strength: f64| yarn_mscale(factor, strength);
    let nonzero = |field| Ok(settings.number(field)?.filter(|value| *value != 0.0));
    let attention_factor =
        match (settings.positive("attention_factor")?, nonzero("mscale")?, nonzero("mscale_all_dim")?) {
            (Some(factor), _, _) => factor,
            (None, Some(a), Some(all)) => mscale(a) / mscale(all),
            (None, _, _) => mscale(1.0),
        };
    Ok(RopeScaling::Yarn {
        factor,
        original_max_position_embeddings: original,
        beta_fast: settings.positive("beta_fast")?.unwrap_or(32.0),
        beta_slow: settings.positive("beta_slow")?.unwrap_or(1.0),
        truncate: settings.flag("truncate")?.unwrap_or(true),
        attention_factor,
    })
}

/// The factor of scores, beside that of cosines and sines, where scaling has `mscale_all_dim`: DeepSeek's form of YaRN.
pub(super) fn scale_by_yarn(config: &JsonFile) -> Result<f64> {
    let Some(settings) = settings(config)? else { return Ok(1.0) };
    let rope_type = settings.text(if settings.has("rope_type") { "rope_type" } else { "type" })?;
    let strength = settings.number("mscale_all_dim")?.filter(|strength| *strength != 0.0);
    match (rope_type, strength) {
        (None | Some("default"), _) | (_, None) => Ok(1.0),
        (_, Some(strength)) => Ok(yarn_mscale(settings.required_positive("factor")?, strength).powi(2)),
    }
}

fn longrope(
    settings: &JsonFile,
    rotary_dim: usize,
    original: usize,
    max_position_embeddings: usize,
) -> Result<RopeScaling> {
    // As in transformers, the ratio of lengths is the default factor.
    let factor = settings.positive("factor")?.unwrap_or(max_position_embeddings as f64 / original as f64);
    let derived = if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / (original as f64).ln()).sqrt() };
    let attention_factor = settings.positive("attention_factor")?.unwrap_or(derived);
    Ok(RopeScaling::Longrope {
        short_factor: settings.required_numbers("short_factor", rotary_dim / 2)?,
        long_factor: settings.required_numbers("long_factor", rotary_dim / 2)?,
        original_max_position_embeddings: original,
        // Phi-3.5-MoE has one for each list.
        attention_factor: settings.positive("short_mscale")?.unwrap_or(attention_factor),
        long_attention_factor: settings.positive("long_mscale")?.unwrap_or(attention_factor),
    })
}
