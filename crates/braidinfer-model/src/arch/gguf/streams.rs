//! Keys and tensors of several residual streams, and of what models with them have besides.

use serde_json::json;

use super::GgufForm;
use super::config::Config;
use super::keys::GgufModel;
use crate::Result;
use crate::format::gguf::Scalar;
use crate::layout::{LayerSlot, Param, Slot, Stack, TensorNames};
use crate::normal_quantile::{normal_quantile, share_below};
use crate::spec::{DecoderSpec, FeedForward};

const ACTIVE: &str = "altup.active_idx";
const INPUTS: &str = "altup.num_inputs";
const CUTOFFS: &str = "activation_sparsity_scale";
const INNER: &str = "feed_forward_length";
/// The first matrix of a low-rank branch, and a vector that a model may have, in the first layer.
const FIRST_LEFT: &str = "blk.0.laurel_l.weight";
const FIRST_SCALE: &str = "blk.0.altup_correct_scale.weight";

/// What llama.cpp takes for granted, whatever a file says: numbers of streams, of the active one and of values in
/// low-rank branches, width of further inputs, how many layers have keys and values of their own, and how many have
/// sparse networks, of what share.
const LLAMA_CPP_INPUTS: usize = 4;
const LLAMA_CPP_ACTIVE: usize = 0;
const LLAMA_CPP_RANK: usize = 64;
const LLAMA_CPP_INPUT_WIDTH: usize = 256;
const LLAMA_CPP_OWN_KV: usize = 20;
const LLAMA_CPP_SPARSE: usize = 10;
const LLAMA_CPP_SHARE: f64 = 0.95;

impl Config<'_> {
    /// Reads what models with several residual streams have, if files of the architecture are such.
    pub(super) fn streams(&mut self) -> Result<()> {
        if !self.fields.contains_key("num_hidden_layers") {
            // What is required is looked for afterwards.
            return Ok(());
        }
        let (file, layers) = (self.file, self.layers());
        self.shared_and_further_inputs()?;
        for (field, suffix) in [("altup_active_idx", ACTIVE), ("altup_num_inputs", INPUTS)] {
            let key = file.key(suffix);
            let number = file.metadata.unsigned(&key)?;
            let number = number.ok_or_else(|| file.metadata.error(&key, "a whole number", "nothing"))?;
            self.set(field, &key, json!(number));
        }
        let rank = file.checkpoint.tensor(FIRST_LEFT)?.and_then(|left| left.shape.first().copied());
        self.set("laurel_rank", FIRST_LEFT, json!(rank));
        let scaled = file.checkpoint.contains(FIRST_SCALE);
        self.set("altup_correct_scale", FIRST_SCALE, json!(scaled));
        let widths = self.of_layers(INNER, layers)?;
        self.set("intermediate_size", &file.key(INNER), json!(widths));
        self.sparsity(layers)
    }

    /// The share of values that are zero, from the cutoffs: numbers of standard deviations above the mean.
    fn sparsity(&mut self, layers: usize) -> Result<()> {
        let (metadata, key) = (self.file.metadata, self.file.key(CUTOFFS));
        let error = |found: String| metadata.error(&key, format!("{layers} numbers, one per layer"), found);
        let list = metadata.scalars(&key)?.ok_or_else(|| error("nothing".into()))?;
        if list.len() != layers {
            return Err(error(format!("{} of them", list.len())));
        }
        let share = |cutoff| match cutoff {
            Some(cutoff) if cutoff == f64::NEG_INFINITY => Ok(0.0),
            Some(cutoff) if (-6.0..6.0).contains(&cutoff) => Ok(share_below(cutoff)),
            Some(cutoff) => Err(error(format!("{cutoff}, where -6 to 6 standard deviations and -inf make sense"))),
            None => Err(error("an entry that is none".into())),
        };
        let shares = list.scalars().map(|entry| share(number(entry))).collect::<Result<Vec<f64>>>()?;
        self.set("activation_sparsity_pattern", &key, json!(shares));
        Ok(())
    }
}

/// The number of an entry, also an infinite one.
fn number(entry: Scalar) -> Option<f64> {
    match entry {
        Scalar::F32(value) => Some(f64::from(value)),
        Scalar::F64(value) => Some(value),
        other => other.to_json().as_f64(),
    }
}

/// Keys of several residual streams and of sparse networks, and what llama.cpp does otherwise.
pub(super) fn write(spec: &DecoderSpec, form: GgufForm, model: &mut GgufModel) {
    let Some(altup) = spec.altup.filter(|_| form.streams) else { return };
    let key = |suffix: &str| format!("{}.{suffix}", form.architecture);
    model.metadata.insert(key(ACTIVE), altup.altup_active_idx as u32);
    model.metadata.insert(key(INPUTS), altup.altup_num_inputs as u32);
    let cutoffs: Vec<f32> =
        cutoffs(spec).map(|cutoff| cutoff.map_or(f32::NEG_INFINITY, |cutoff| cutoff as f32)).collect();
    model.metadata.insert(key(CUTOFFS), &cutoffs[..]);
    notes(spec, form, model);
}

/// The projections to keys and values, and norms of keys, of layers that read those of earlier ones, which llama.cpp does
/// not use but does not load a model without: they are those of the earlier layers.
pub(super) fn repeated(spec: &DecoderSpec, form: GgufForm, names: &TensorNames, tensors: &[Stack]) -> Vec<Stack> {
    let layers = (0..spec.layers.len()).filter(|_| form.streams);
    let shared = layers.filter_map(|layer| Some((layer, spec.kv_shared_with(layer)?)));
    let repeated = |(layer, source): (usize, usize)| {
        [LayerSlot::KProj, LayerSlot::VProj, LayerSlot::KNorm].into_iter().filter_map(move |slot| {
            let of = |layer| names.tensor(Slot::Layer(layer, slot), Param::Weight, "", "");
            let stack = tensors.iter().find(|stack| stack.tensor == of(source))?;
            Some(Stack { tensor: of(layer), parameters: stack.parameters.clone() })
        })
    };
    shared.flat_map(repeated).collect()
}

fn notes(spec: &DecoderSpec, form: GgufForm, model: &mut GgufModel) {
    let (Some(altup), layers) = (spec.altup, spec.layers.len()) else { return };
    let architecture = form.architecture;
    let rank = spec.laurel.map_or(LLAMA_CPP_RANK, |laurel| laurel.laurel_rank);
    let width = spec.per_layer_inputs.map_or(0, |inputs| inputs.hidden_size_per_layer_input);
    for (is, wanted, what) in [
        (altup.altup_num_inputs, LLAMA_CPP_INPUTS, "residual streams"),
        (altup.altup_active_idx, LLAMA_CPP_ACTIVE, "for the active stream's index"),
        (rank, LLAMA_CPP_RANK, "values in low-rank branches"),
        (width, LLAMA_CPP_INPUT_WIDTH, "values of further input for each layer"),
    ] {
        if is != wanted {
            let note =
                format!("llama.cpp takes {wanted} {what} in a {architecture} model, not {is}, and does not run it");
            model.notes.push(note);
        }
    }
    if !altup.altup_correct_scale {
        model.notes.push(format!("llama.cpp does not load a {architecture} model without scales of corrected streams"));
    }
    let own = layers - (0..layers).filter(|layer| spec.kv_shared_with(*layer).is_some()).count();
    if own != LLAMA_CPP_OWN_KV.min(layers) {
        model.notes.push(format!(
            "llama.cpp takes the first {LLAMA_CPP_OWN_KV} layers of a {architecture} model to have keys and values of \
             their own, not {own}"
        ));
    }
    let published = normal_quantile(LLAMA_CPP_SHARE);
    let same = cutoffs(spec).enumerate().all(|(layer, cutoff)| match cutoff {
        Some(cutoff) => layer < LLAMA_CPP_SPARSE && (cutoff - published).abs() < 1e-5,
        None => layer >= LLAMA_CPP_SPARSE,
    });
    if !same {
        model.notes.push(format!(
            "llama.cpp takes the first {LLAMA_CPP_SPARSE} networks of a {architecture} model to be sparse, 95 % of their \
             values zero, and no others"
        ));
    }
}

/// The cutoff of the network of every layer.
fn cutoffs(spec: &DecoderSpec) -> impl Iterator<Item = Option<f64>> {
    spec.layers.iter().map(|layer| match layer.feed_forward {
        FeedForward::Dense { gate_cutoff, .. } => gate_cutoff,
        FeedForward::Experts(_) | FeedForward::None => None,
    })
}
