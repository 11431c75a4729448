//! A model with load options in one argument, for commands that compare two sides.

use std::ffi::OsString;

use anyhow::{Context, anyhow, bail};
use braidinfer::compat::Precision;
use braidinfer::executor::{DeviceChoice, Kernels};
use braidinfer::{Llm, LoadOptions};
use clap::ValueEnum;

use crate::args::{ComputingArgs, DtypeArg, KernelsArg, KvDtypeArg, PrecisionArg};
use crate::{model, output};

/// Names of the options in such an argument.
const OPTIONS: [&str; 6] = ["kernels", "precision", "dtype", "kv_dtype", "quantize", "device"];

/// A local model with its load options.
pub struct LocalModel {
    pub model: OsString,
    pub options: LoadOptions,
}

impl LocalModel {
    /// Parses `MODEL[,NAME=VALUE]..`.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        Self::parse_over(text, &ComputingArgs::default())
    }

    /// Parses the other side: another model, or `NAME=VALUE[,NAME=VALUE]..` for this model with other options.
    pub fn other(&self, text: &str) -> anyhow::Result<Self> {
        let is_way = text.split(',').all(|part| part.split_once('=').is_some_and(|(name, _)| OPTIONS.contains(&name)));
        if is_way { Self::parse(&format!("{},{text}", self.model.to_string_lossy())) } else { Self::parse(text) }
    }

    /// Parses `MODEL[,NAME=VALUE]..`, whose options override those of both sides.
    pub fn parse_over(text: &str, computing: &ComputingArgs) -> anyhow::Result<Self> {
        let mut parts = text.split(',');
        let model = parts.next().unwrap_or_default().into();
        let (mut kernels, mut precision, mut computing) = (KernelsArg::Auto, None, computing.clone());
        let mut seen = Vec::new();
        for part in parts {
            let Some((key, name)) = part.split_once('=').filter(|(key, _)| OPTIONS.contains(key)) else {
                bail!(
                    "{text}: expected kernels=, precision=, dtype=, kv_dtype=, quantize= or device= after the model, found `{part}`"
                );
            };
            if seen.contains(&key) {
                bail!("{text}: expected {key}= once, found it twice");
            }
            seen.push(key);
            match key {
                "kernels" => kernels = value(text, key, name)?,
                "precision" => precision = Some(value::<PrecisionArg>(text, key, name)?),
                "dtype" => computing.dtype = value::<DtypeArg>(text, key, name)?,
                "device" => name.clone_into(&mut computing.device),
                "kv_dtype" => computing.kv_dtype = value::<KvDtypeArg>(text, key, name)?,
                _ => {
                    let quantize = name.parse().map_err(anyhow::Error::msg);
                    computing.quantize = Some(quantize.with_context(|| format!("{text}: `{name}`"))?);
                }
            }
        }
        if precision.is_some() && kernels == KernelsArg::Standard {
            bail!("{text}: expected precision= with fused kernels only, found kernels=standard");
        }
        let options = model::options(kernels.into(), &computing)?;
        // What both sides share of GPUs is not for a side that is said to be on the CPU.
        let on_cpu = seen.contains(&"device") && options.device == DeviceChoice::Cpu;
        let options = if on_cpu { options.on_cpu() } else { options };
        // `kernels=fused` without a precision means the fastest level, whatever the compatibility check says.
        let force = options.kernels == Kernels::Fused && precision.is_none();
        let precision = precision.map_or(Precision::Auto, Precision::from);
        Ok(Self { model, options: LoadOptions { force, precision, ..options } })
    }

    /// Opens the model and prints its notes.
    pub fn load(&self) -> anyhow::Result<Llm> {
        let source = model::source(Some(&self.model))?;
        let llm = model::load(&source, &self.options)?;
        llm.notes().iter().for_each(output::note);
        Ok(llm)
    }
}

fn value<T: ValueEnum>(text: &str, key: &str, name: &str) -> anyhow::Result<T> {
    let possible = T::value_variants().iter().filter_map(ValueEnum::to_possible_value);
    let names: Vec<String> = possible.map(|value| value.get_name().to_owned()).collect();
    T::from_str(name, false).map_err(|_| anyhow!("{text}: {key}: expected one of {}, found `{name}`", names.join(", ")))
}
