//! Choosing experts: logits of a router to the experts of a token and the factors of their outputs.

use crate::elementwise::logistic;

/// How experts are chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Routing {
    /// How logits become scores.
    pub scoring: Scoring,
    /// Only experts of the best groups can be chosen.
    pub groups: Option<Groups>,
    /// Whether weights are divided by their sum.
    pub normalized: Option<Divisor>,
    /// Factor of the weights, after that.
    pub factor: f32,
}

/// What weights are divided by: `max(sum + added, least)`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Divisor {
    /// Added to the sum.
    pub added: f32,
    /// The least divisor.
    pub least: f32,
}

/// How logits become scores.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Scoring {
    /// Softmax over all experts.
    Softmax,
    /// Logistic function of each.
    Sigmoid,
    /// One expert after the other, each weighted by a softmax over the logits whose relative distance from its own is at
    /// most twice this (arXiv:2310.00811).
    Sparsemixer(f32),
}

/// Equal groups of experts, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Groups {
    /// Their number.
    pub count: usize,
    /// How many can be chosen from.
    pub chosen: usize,
    /// Whether they are compared by the sum of their two best scores, and not by the best.
    pub by_two: bool,
}

/// An expert that was chosen for a token.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Choice {
    /// Its index.
    pub expert: usize,
    /// Factor of its output.
    pub weight: f32,
}

/// Chooses `choices.len()` experts by `logits`, `[E]`, in ascending order of their indices; among equal scores the lowest
/// index is chosen. `logits` become scores; `by`, `[E]`, becomes what experts were chosen by: the scores, plus `correction`,
/// minus infinity in groups that cannot be chosen from.
///
/// # Panics
///
/// If there are fewer experts than choices.
pub fn route(
    routing: &Routing,
    logits: &mut [f32],
    correction: Option<&[f32]>,
    by: &mut [f32],
    choices: &mut [Choice],
) {
    assert!(choices.len() <= logits.len() && by.len() == logits.len(), "experts and choices");
    match routing.scoring {
        Scoring::Softmax => softmax(logits),
        Scoring::Sigmoid => logits.iter_mut().for_each(|logit| *logit = logistic(*logit)),
        Scoring::Sparsemixer(jitter) => {
            by.copy_from_slice(logits);
            choose_in_turn(logits, jitter, by, choices);
            by.copy_from_slice(logits);
            return finish(routing, choices);
        }
    }
    choice_scores(logits, correction, by);
    if let Some(groups) = routing.groups {
        exclude_groups(groups, by);
    }
    choose_best(by, choices);
    choices.iter_mut().for_each(|choice| choice.weight = logits[choice.expert]);
    finish(routing, choices);
}

/// `by = scores + correction`.
fn choice_scores(scores: &[f32], correction: Option<&[f32]>, by: &mut [f32]) {
    by.copy_from_slice(scores);
    for (by, correction) in by.iter_mut().zip(correction.unwrap_or_default()) {
        *by += correction;
    }
}

fn finish(routing: &Routing, choices: &mut [Choice]) {
    choices.sort_unstable_by_key(|choice| choice.expert);
    if let Some(Divisor { added, least }) = routing.normalized {
        let sum = choices.iter().map(|choice| choice.weight).sum::<f32>() + added;
        choices.iter_mut().for_each(|choice| choice.weight /= sum.max(least));
    }
    choices.iter_mut().for_each(|choice| choice.weight *= routing.factor);
}

fn softmax(values: &mut [f32]) {
    let largest = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0;
    for value in values.iter_mut() {
        *value = (*value - largest).exp();
        sum += *value;
    }
    values.iter_mut().for_each(|value| *value /= sum);
}

/// Whether expert `a` comes before `b`.
fn is_before(scores: &[f32], a: usize, b: usize) -> bool {
    scores[a].total_cmp(&scores[b]).then(b.cmp(&a)).is_gt()
}

/// The best experts, by insertion into a sorted list: there are few.
fn choose_best(scores: &[f32], choices: &mut [Choice]) {
    let mut count = 0;
    for expert in 0..scores.len() {
        if count == choices.len() && !choices.last().is_some_and(|last| is_before(scores, expert, last.expert)) {
            continue;
        }
        let place = choices[..count].partition_point(|choice| is_before(scores, choice.expert, expert));
        count = (count + 1).min(choices.len());
        choices[place..count].rotate_right(1);
        choices[place].expert = expert;
    }
}

fn best(scores: &[f32]) -> usize {
    (1..scores.len()).fold(0, |best, expert| if is_before(scores, expert, best) { expert } else { best })
}

/// Sets the scores of all groups but the best to minus infinity.
fn exclude_groups(groups: Groups, scores: &mut [f32]) {
    let width = scores.len() / groups.count;
    let of_group = |scores: &[f32], group: usize| {
        let scores = &scores[group * width..(group + 1) * width];
        let first = best(scores);
        let rest = || (0..width).filter(|expert| *expert != first).map(|expert| scores[expert]);
        if groups.by_two { scores[first] + rest().fold(f32::NEG_INFINITY, f32::max) } else { scores[first] }
    };
    for group in 0..groups.count {
        // Groups that were excluded come last, and the best are never excluded: the count is right at any time.
        let own = of_group(scores, group);
        let is_better =
            |other: &usize| *other != group && of_group(scores, *other).total_cmp(&own).then(group.cmp(other)).is_gt();
        if (0..groups.count).filter(is_better).count() >= groups.chosen {
            scores[group * width..(group + 1) * width].fill(f32::NEG_INFINITY);
        }
    }
}

/// SparseMixer's choice; `left` holds the logits and is overwritten.
fn choose_in_turn(logits: &[f32], jitter: f32, left: &mut [f32], choices: &mut [Choice]) {
    for choice in choices {
        let expert = best(left);
        let largest = left[expert];
        let is_far = |logit: f32| (largest - logit) / logit.abs().max(largest) > 2.0 * jitter;
        let near = logits.iter().zip(&*left).filter(|(logit, _)| !is_far(**logit));
        let sum: f32 = near.map(|(_, left)| (left - largest).exp()).sum();
        *choice = Choice { expert, weight: 1.0 / sum };
        left[expert] = f32::NEG_INFINITY;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The definition: sorts everything.
    fn expected(routing: &Routing, logits: &[f32], correction: Option<&[f32]>, count: usize) -> Vec<Choice> {
        let exponentials: Vec<f64> = logits.iter().map(|logit| f64::from(*logit).exp()).collect();
        let score = |expert: usize| match routing.scoring {
            Scoring::Sigmoid => 1.0 / (1.0 + (-f64::from(logits[expert])).exp()),
            _ => exponentials[expert] / exponentials.iter().sum::<f64>(),
        };
        let by = |expert: usize| score(expert) + correction.map_or(0.0, |correction| f64::from(correction[expert]));
        let mut allowed: Vec<usize> = (0..logits.len()).collect();
        if let Some(Groups { count, chosen, by_two }) = routing.groups {
            let width = logits.len() / count;
            let of = |group: usize| {
                let mut scores: Vec<f64> = (group * width..(group + 1) * width).map(by).collect();
                scores.sort_by(|a, b| b.total_cmp(a));
                if by_two { scores[0] + scores[1] } else { scores[0] }
            };
            let mut groups: Vec<usize> = (0..count).collect();
            groups.sort_by(|a, b| of(*b).total_cmp(&of(*a)));
            allowed.retain(|expert| groups[..chosen].contains(&(expert / width)));
        }
        allowed.sort_by(|a, b| by(*b).total_cmp(&by(*a)));
        allowed.truncate(count);
        allowed.sort_unstable();
        let sum: f64 = allowed.iter().map(|expert| score(*expert)).sum();
        let weight = |expert: usize| {
            score(expert) / routing.normalized.map_or(1.0, |by| (sum + f64::from(by.added)).max(f64::from(by.least)))
        };
        let choice = |expert| Choice { expert, weight: (weight(expert) * f64::from(routing.factor)) as f32 };
        allowed.into_iter().map(choice).collect()
    }

    proptest! {
        #[test]
        fn the_best_experts_are_chosen(
            logits in prop::collection::vec(-6f32..6.0, 12),
            correction in prop::collection::vec(-0.5f32..0.5, 12),
            (sigmoid, normalized, corrected, grouped, by_two) in any::<(bool, bool, bool, bool, bool)>(),
            count in 1usize..6,
        ) {
            let routing = Routing {
                scoring: if sigmoid { Scoring::Sigmoid } else { Scoring::Softmax },
                groups: grouped.then_some(Groups { count: 3, chosen: 2, by_two }),
                normalized: normalized.then_some(Divisor { added: 0.01, least: 0.25 }),
                factor: 1.5,
            };
            let correction = corrected.then_some(&correction[..]);
            let wanted = expected(&routing, &logits, correction, count);
            let (mut scores, mut by) = (logits.clone(), vec![0.0; logits.len()]);
            let mut found = vec![Choice::default(); count];
            route(&routing, &mut scores, correction, &mut by, &mut found);
            let experts = |choices: &[Choice]| choices.iter().map(|choice| choice.expert).collect::<Vec<_>>();
            prop_assert_eq!(experts(&found), experts(&wanted));
            for (found, wanted) in found.iter().zip(&wanted) {
                prop_assert!((found.weight - wanted.weight).abs() <= 1e-5 * wanted.weight.abs() + 1e-9);
            }
        }
    }

    #[test]
    fn among_equal_scores_the_lowest_index_is_chosen() {
        let routing = Routing {
            scoring: Scoring::Softmax,
            groups: None,
            normalized: Some(Divisor { added: 0.0, least: 1e-20 }),
            factor: 1.0,
        };
        let mut found = [Choice::default(); 3];
        route(&routing, &mut [1.0, 2.0, 1.0, 1.0, 2.0], None, &mut [0.0; 5], &mut found);
        assert_eq!(found.map(|choice| choice.expert), [0, 1, 4]);
    }

    #[test]
    fn sparsemixer_weights_an_expert_among_those_near_it() {
        let routing = Routing { scoring: Scoring::Sparsemixer(0.1), groups: None, normalized: None, factor: 1.0 };
        let mut found = [Choice::default(); 2];
        // 1.7 is within 20 % of 2.0, 1.0 is not; once 2.0 is taken out, 1.7 stands alone, for 2.0 is not counted again.
        route(&routing, &mut [1.0, 2.0, 1.7], None, &mut [0.0; 3], &mut found);
        let first = 1.0 / (1.0 + (-0.3f32).exp());
        assert_eq!(found.map(|choice| choice.expert), [1, 2]);
        assert!((found[0].weight - first).abs() < 1e-6 && (found[1].weight - 1.0).abs() < 1e-6, "{found:?}");
    }
}
