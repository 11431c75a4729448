//! Turns the library's messages into those of the command line, where the field `top_p` is the flag `--top-p`.

use braidinfer::compat::CompatReport;
use braidinfer::validation::{Finding, ValidationReport};
use braidinfer::{Advice, Error, Setting};
use braidinfer_server::StartError;
use clap::CommandFactory;

use crate::args::Cli;

/// Fields that can be given in other ways besides the flag of the same name.
const NOT_ONLY_FLAGS: [&str; 1] = ["prompt"];

/// An error of the library, with advice in terms of flags.
pub fn error(error: &Error) -> String {
    let problem = match error {
        Error::BadRequest { field, expected, found } => {
            format!("{}: expected {expected}, found {found}", field_name(field))
        }
        other => other.to_string(),
    };
    match error.advice() {
        Some(advice) => format!("{problem}; {}", advice.worded(setting)),
        None => problem,
    }
}

/// Why a server cannot start, with its settings as flags.
pub fn start(error: &StartError) -> String {
    match error {
        StartError::Setting { setting, expected, found } => {
            let setting = match *setting {
                "max_body_bytes" => "--max-body".into(),
                "max_answer_bytes" => "--max-answer".into(),
                other => field_name(other),
            };
            let expected = expected.replace("max_request_memory", "--max-request-memory");
            format!("{setting}: expected {expected}, found {found}")
        }
        other => other.to_string(),
    }
}

/// A compatibility report with its advice in terms of flags.
pub fn compat(report: CompatReport) -> CompatReport {
    let recommendations = report.recommendations.iter().map(in_flags).collect();
    CompatReport { recommendations, ..report }
}

/// A validation report with its advice in terms of flags.
pub fn validation(report: ValidationReport) -> ValidationReport {
    let finding = |finding: Finding| Finding { fix: finding.fix.as_ref().map(in_flags), ..finding };
    ValidationReport {
        findings: report.findings.into_iter().map(finding).collect(),
        compat: report.compat.map(compat),
        ..report
    }
}

fn in_flags(advice: &Advice) -> Advice {
    advice.worded(setting).into()
}

fn setting(setting: Setting) -> String {
    let Setting { name, value } = setting;
    let flag = format!("--{}", hyphenated(name));
    match (name, value) {
        // Names the command, because the user may have run another one.
        ("thoroughness", Some("full")) => "`check --full`".into(),
        (_, None | Some("true")) => flag,
        (_, Some(value)) => format!("{flag} {value}"),
    }
}

/// The flag for a field, if a command has one; otherwise a few words.
fn field_name(field: &str) -> String {
    let name = hyphenated(field);
    let is_flag = Cli::command()
        .get_subcommands()
        .flat_map(clap::Command::get_arguments)
        .any(|argument| argument.get_long() == Some(name.as_str()));
    if is_flag && !NOT_ONLY_FLAGS.contains(&field) { format!("--{name}") } else { field.replace('_', " ") }
}

fn hyphenated(name: &str) -> String {
    name.replace('_', "-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_flags_where_there_is_one() {
        let names = ["top_p", "shadow_check", "context", "token_id", "prompt", "vocabulary_of_the_other_model"];
        let expected =
            ["--top-p", "--shadow-check", "--context", "token id", "prompt", "vocabulary of the other model"];
        assert_eq!(names.map(field_name), expected);
        let refused = Error::bad_request("max_tokens", "a whole number of at least 1", 0);
        assert_eq!(error(&refused), "--max-tokens: expected a whole number of at least 1, found 0");
    }

    #[test]
    fn advice_names_flags() {
        let there = Error::AlreadyThere { path: "x.gguf".into() };
        let expected = "x.gguf: expected no file of this name, found one; it can be overwritten with --force";
        assert_eq!(error(&there), expected);
        let forbidden =
            Error::FusedForbidden { model: "m".into(), status: "INCOMPATIBLE", reason: "they are wrong".into() };
        let expected =
            "m: fused kernels are INCOMPATIBLE with this model: they are wrong; use --kernels auto, or --force";
        assert_eq!(error(&forbidden), expected);
        let advice =
            Advice::from("nothing, or ").then_set("thoroughness", "full").then(", or less ").then_name("context");
        assert_eq!(in_flags(&advice).to_string(), "nothing, or `check --full`, or less --context");
    }
}
