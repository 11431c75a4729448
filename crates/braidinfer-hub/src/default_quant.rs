//! Which of a repository's quantizations is taken where none was asked for.

use crate::gguf_name::GgufSet;

/// Quantizations by preference: about four bits for each weight are a fair trade between size, speed and answers, and what is finer
/// comes next.
const PREFERRED: [&str; 11] =
    ["Q4_K_M", "Q4_K_S", "IQ4_XS", "Q4_0", "Q4_1", "Q5_K_M", "Q5_K_S", "Q5_0", "Q5_1", "Q6_K", "Q8_0"];

/// Memory beside the weights, in bytes.
const BESIDE: u64 = 256 << 20;

/// A quantization that could be taken.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Candidate<'a> {
    pub set: &'a GgufSet,
    /// Size of its files in bytes.
    pub bytes: u64,
    /// Whether it is in the cache.
    pub is_cached: bool,
}

/// The one to take with this much memory; `None` if none fits, or if several have its name. What is in the cache comes first, then
/// the first of [`PREFERRED`] that fits, and else the largest that does.
pub(crate) fn choose<'a>(candidates: &[Candidate<'a>], memory: u64) -> Option<Candidate<'a>> {
    let fits = |candidate: &&Candidate<'_>| {
        let needed = candidate.bytes.saturating_add(candidate.bytes / 8).saturating_add(BESIDE);
        needed <= memory
    };
    let label = |candidate: &Candidate<'_>| candidate.set.label().map(str::to_ascii_uppercase);
    let rank = |candidate: &Candidate<'_>| {
        let preferred = PREFERRED.iter().position(|name| label(candidate).as_deref() == Some(*name));
        (!candidate.is_cached, preferred.unwrap_or(PREFERRED.len()), std::cmp::Reverse(candidate.bytes))
    };
    let named = candidates.iter().filter(|candidate| candidate.set.label().is_some());
    let best = named.filter(fits).min_by_key(|candidate| rank(candidate))?;
    let is_only = candidates.iter().filter(|other| label(other) == label(best)).count() == 1;
    is_only.then_some(*best)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GB: u64 = 1 << 30;

    /// The label that is chosen of files with these sizes in GB, of which those with a `*` are in the cache.
    fn chosen(files: &[(&str, u64)], memory: u64) -> Option<String> {
        let names: Vec<String> = files.iter().map(|(name, _)| format!("{}.gguf", name.trim_end_matches('*'))).collect();
        let sets = GgufSet::all(&names);
        let candidate = |set| {
            let is_own = |(name, _): &&(&str, u64)| format!("{}.gguf", name.trim_end_matches('*')) == set_file(set);
            let (name, size) = files.iter().find(is_own).expect("each is one of them");
            Candidate { set, bytes: size * GB, is_cached: name.ends_with('*') }
        };
        let candidates: Vec<Candidate<'_>> = sets.iter().map(candidate).collect();
        choose(&candidates, memory * GB).map(|chosen| chosen.set.handle().to_owned())
    }

    fn set_file(set: &GgufSet) -> &str {
        &set.files[0]
    }

    #[test]
    fn the_middle_is_taken_where_it_fits_and_else_the_largest_that_does() {
        let files = [("m-Q2_K", 3), ("m-Q3_K_M", 4), ("m-Q4_K_M", 5), ("m-Q8_0", 9), ("m-BF16", 16)];
        let of = |memory| chosen(&files, memory);
        assert_eq!(of(100).as_deref(), Some("Q4_K_M"));
        assert_eq!(of(6).as_deref(), Some("Q4_K_M"));
        assert_eq!(of(5).as_deref(), Some("Q3_K_M"));
        assert_eq!((of(4).as_deref(), of(3)), (Some("Q2_K"), None));
        assert_eq!(chosen(&[("m-Q8_0", 9), ("m-BF16", 16)], 100).as_deref(), Some("Q8_0"));
        assert_eq!(chosen(&[("m-UD-Q4_K_XL", 5), ("m-BF16", 16)], 100).as_deref(), Some("BF16"));
        let cached = [("m-Q4_K_M", 5), ("m-Q8_0*", 9)];
        assert_eq!(chosen(&cached, 100).as_deref(), Some("Q8_0"), "it need not be fetched");
        assert_eq!(chosen(&cached, 8).as_deref(), Some("Q4_K_M"));
        assert_eq!(chosen(&[("x-Q4_K_M", 5), ("y-Q4_K_M", 5)], 100), None, "they are two models");
        assert_eq!(chosen(&[("turbo", 5), ("best", 5)], 100), None);
    }
}
