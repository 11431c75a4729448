//! Sampling parameters, by the library's table of them.

use std::collections::BTreeMap;

use braidinfer::SamplingParams;
use braidinfer::engine::{Kind, PARAMETERS};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::errors::bad_argument;

/// Counts of log-probabilities, which each face asks for in its own way.
const LOGPROBS: [&str; 2] = ["logprobs", "prompt_logprobs"];

/// Name and help of every parameter that `Engine.submit` takes.
#[pyfunction]
pub fn sampling_parameters() -> Vec<(&'static str, &'static str)> {
    let counts = [
        ("logprobs", "Give the log-probability of each token of the answer, and of this many of the likeliest"),
        ("prompt_logprobs", "The same for each token of the prompt"),
    ];
    PARAMETERS.iter().map(|parameter| (parameter.name, parameter.help)).chain(counts).collect()
}

/// The model's `defaults`, overridden by what is given. Fails with `ValueError` on an unknown name or a value of another type.
pub fn overridden(defaults: SamplingParams, given: &Bound<'_, PyDict>) -> PyResult<SamplingParams> {
    let mut params = defaults;
    for (name, value) in given {
        let name: String = name.extract()?;
        set(&mut params, &name, &value)?;
    }
    Ok(params)
}

fn set(params: &mut SamplingParams, name: &str, value: &Bound<'_, PyAny>) -> PyResult<()> {
    if LOGPROBS.contains(&name) {
        let count = Some(typed(name, value, "a whole number")?);
        match name {
            "logprobs" => params.logprobs = count,
            _ => params.prompt_logprobs = count,
        }
        return Ok(());
    }
    let Some(parameter) = PARAMETERS.iter().find(|parameter| parameter.name == name) else {
        let names: Vec<&str> = PARAMETERS.iter().map(|parameter| parameter.name).chain(LOGPROBS).collect();
        return Err(bad_argument("sampling_params", format!("names among {}", names.join(", ")), format!("`{name}`")));
    };
    match parameter.kind {
        Kind::Number(set) => set(params, typed(name, value, "a number")?),
        Kind::Count(set) => set(params, typed(name, value, "a whole number")?),
        // As in vLLM, -1 and 0 keep all.
        Kind::CountOrAll(set) => {
            let count: i64 = typed(name, value, "a whole number")?;
            if count < -1 {
                return Err(bad_argument(name, "a whole number of at least 1, or -1 or 0 for all", count));
            }
            set(params, usize::try_from(count).ok().filter(|count| *count > 0));
        }
        Kind::Seed(set) => set(params, seed(name, value)?),
        Kind::Switch(set) => set(params, typed(name, value, "True or False")?),
        Kind::Texts(set) => {
            let texts: OneOrMany = typed(name, value, "a text or a list of texts")?;
            set(params, texts.into());
        }
        Kind::Biases(set) => {
            let biases: BTreeMap<u32, f32> = typed(name, value, "numbers by token id")?;
            set(params, biases);
        }
        Kind::TokenIds(set) => set(params, typed(name, value, "a list of token ids")?),
    }
    Ok(())
}

/// A negative seed is taken as the same bits.
fn seed(name: &str, value: &Bound<'_, PyAny>) -> PyResult<u64> {
    if let Ok(seed) = value.extract::<i64>() {
        return Ok(seed as u64);
    }
    typed(name, value, "a whole number of 64 bits")
}

#[derive(FromPyObject)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl From<OneOrMany> for Vec<String> {
    fn from(texts: OneOrMany) -> Self {
        match texts {
            OneOrMany::One(text) => vec![text],
            OneOrMany::Many(texts) => texts,
        }
    }
}

fn typed<'py, T: for<'a> FromPyObject<'a, 'py>>(name: &str, value: &Bound<'py, PyAny>, expected: &str) -> PyResult<T> {
    value.extract().map_err(|_| bad_argument(name, expected, format!("{value:?}")))
}
