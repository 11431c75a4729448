//! Flags for request parameters, generated from the library's table of parameters.

use braidinfer::SamplingParams;
use braidinfer::engine::{Kind, PARAMETERS, Parameter};
use clap::builder::ValueParser;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches, value_parser};

const HEADING: &str = "Sampling (defaults: the model's generation_config.json)";

/// Parameters with a one-letter flag.
const SHORT: [(&str, char); 1] = [("max_tokens", 'n')];

/// Parameters without a flag: commands generate one answer per prompt.
const NO_FLAG: [&str; 1] = ["n"];

/// The sampling flags. Parameters that are not given come from the model's generation_config.json.
#[derive(Debug, Clone)]
pub struct SamplingArgs(ArgMatches);

impl SamplingArgs {
    /// The model's `defaults`, overridden by the flags that are given.
    pub fn override_defaults(&self, defaults: SamplingParams) -> SamplingParams {
        let mut params = defaults;
        PARAMETERS
            .iter()
            .filter(|parameter| has_flag(parameter))
            .for_each(|parameter| self.set(parameter, &mut params));
        params
    }

    /// Sets a parameter if its flag is given.
    fn set(&self, parameter: &Parameter, params: &mut SamplingParams) {
        let (typed, name) = (&self.0, parameter.name);
        match parameter.kind {
            Kind::Number(set) => typed.get_one(name).into_iter().for_each(|value| set(params, *value)),
            Kind::Count(set) => typed.get_one(name).into_iter().for_each(|count| set(params, *count)),
            Kind::CountOrAll(set) => typed.get_one(name).into_iter().for_each(|count| set(params, Some(*count))),
            Kind::Seed(set) => typed.get_one(name).into_iter().for_each(|seed| set(params, *seed)),
            Kind::Texts(set) => {
                typed.get_many(name).into_iter().for_each(|texts| set(params, texts.cloned().collect()));
            }
            Kind::TokenIds(set) => {
                typed.get_many(name).into_iter().for_each(|ids| set(params, ids.copied().collect()));
            }
            Kind::Switch(set) if typed.get_flag(name) => set(params, true),
            Kind::Switch(_) | Kind::Biases(_) => {}
        }
    }
}

fn has_flag(parameter: &Parameter) -> bool {
    // A map of biases is impractical as a flag.
    !matches!(parameter.kind, Kind::Biases(_)) && !NO_FLAG.contains(&parameter.name)
}

/// The flag for a parameter.
fn flag(parameter: &Parameter) -> Arg {
    let Parameter { name, help, placeholder, kind, .. } = *parameter;
    let flag = Arg::new(name).long(name.replace('_', "-")).help(help).help_heading(HEADING);
    let flag = match SHORT.iter().find(|(long, _)| *long == name) {
        Some((_, short)) => flag.short(*short),
        None => flag,
    };
    let with_value = |parser: ValueParser| flag.clone().value_name(placeholder).value_parser(parser);
    match kind {
        Kind::Number(_) => with_value(value_parser!(f64).into()),
        Kind::Count(_) | Kind::CountOrAll(_) => with_value(value_parser!(usize).into()),
        Kind::Seed(_) => with_value(value_parser!(u64).into()),
        Kind::Texts(_) | Kind::Biases(_) => with_value(value_parser!(String))
            .action(ArgAction::Append)
            .help(format!("{help}; may be given several times")),
        Kind::TokenIds(_) => with_value(value_parser!(u32).into()).value_delimiter(',').action(ArgAction::Append),
        Kind::Switch(_) => flag.action(ArgAction::SetTrue),
    }
}

impl Args for SamplingArgs {
    fn augment_args(command: Command) -> Command {
        command.args(PARAMETERS.iter().filter(|parameter| has_flag(parameter)).map(flag))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for SamplingArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        Ok(Self(matches.clone()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        self.0 = matches.clone();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(arguments: &[&str]) -> SamplingParams {
        let command = SamplingArgs::augment_args(Command::new("test").no_binary_name(true));
        let matches = command.try_get_matches_from(arguments).expect("they are flags");
        let defaults = SamplingParams { temperature: 0.5, top_k: Some(7), ..SamplingParams::default() };
        SamplingArgs::from_arg_matches(&matches).expect("they can be read").override_defaults(defaults)
    }

    #[test]
    fn flags_override_the_defaults_of_the_model() {
        let own = typed(&[]);
        assert_eq!((own.temperature, own.top_k, own.ignore_eos), (0.5, Some(7), false));
        let params = typed(&["-n", "3", "--top-k", "2", "--seed", "9", "--stop", "a", "--stop", "b", "--ignore-eos"]);
        let expected = SamplingParams {
            max_tokens: Some(3),
            temperature: 0.5,
            top_k: Some(2),
            seed: Some(9),
            stop: vec!["a".into(), "b".into()],
            ignore_eos: true,
            ..SamplingParams::default()
        };
        assert_eq!(params, expected);
    }
}
