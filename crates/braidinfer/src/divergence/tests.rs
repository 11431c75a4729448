use super::*;

#[test]
fn equal_logits_have_no_divergence() {
    let logits = [0.5, 2.0, -1.0, 3.0, 0.0, 1.0];
    let divergence = Divergence::of(&logits, &logits, 3, &[Some(1), None]);
    assert_eq!((divergence.kl_max, divergence.top1_agreement, divergence.disagreements), (0.0, 1.0, 0));
    assert_eq!((divergence.shift_max, divergence.decided), (0.0, 2));
    // The token after the first position has logit 2 of 0.5, 2 and -1.
    let expected = (0.5_f64.exp() + 2.0_f64.exp() + (-1.0_f64).exp()).ln() - 2.0;
    assert!((divergence.loss - expected).abs() < 1e-12, "{}", divergence.loss);
}

#[test]
fn near_ties_are_distinguished_from_disagreements() {
    let truth = [1.0, 0.96, 0.0, 3.0, 0.0, 0.0];
    let other = [0.96, 1.0, 0.0, 0.0, 3.0, 0.0];
    let divergence = Divergence::of(&truth, &other, 3, &[]);
    assert_eq!((divergence.near_ties, divergence.disagreements, divergence.top1_agreement), (1, 1, 0.0));
    assert_eq!((divergence.decided, divergence.changed().share), (1, 1.0));
    assert!(divergence.kl_max > 1.0 && divergence.kl_mean < divergence.kl_max);
}

#[test]
fn shifts_are_measured_on_competing_tokens() {
    // The margin of the second token shrinks by 0.25; that of the third, which is 7 nats away, by 2.
    let (truth, own) = ([2.0, 1.0, -5.0], [2.0, 1.25, -3.0]);
    let divergence = Divergence::of(&truth, &own, 3, &[]);
    assert!((divergence.shift_max - 0.25).abs() < 1e-6, "{}", divergence.shift_max);
    // If the most likely token changes, the shift is at least its margin.
    let changed = Divergence::of(&[2.0, 1.0], &[1.0, 2.0], 2, &[]);
    assert!(changed.shift_max > 1.0 && changed.disagreements == 1);
}

#[test]
fn non_finite_logits_are_not_hidden() {
    let divergence = Divergence::of(&[0.0, 1.0], &[f32::NAN, 1.0], 2, &[]);
    assert!(!divergence.is_finite() && divergence.kl_max.is_nan() && divergence.shift_max.is_nan());
}

#[test]
fn tallies_do_not_depend_on_how_positions_are_split() {
    let truth: Vec<f32> = (0..60).map(|i| ((i * 37) % 11) as f32 / 3.0).collect();
    let own: Vec<f32> = (0..60).map(|i| ((i * 37) % 11) as f32 / 3.0 + ((i * 5) % 7) as f32 / 50.0).collect();
    let next: Vec<Option<u32>> = (0..10).map(|i| Some(i % 6)).collect();
    let mut tally = Tally::default();
    for part in [0..3, 3..4, 4..10] {
        let values = part.start * 6..part.end * 6;
        tally.add(&truth[values.clone()], &own[values], 6, &next[part]);
    }
    assert_eq!(tally.divergence(), Divergence::of(&truth, &own, 6, &next));
}

/// Expected values were computed independently of this implementation.
#[test]
fn rates_have_confidence_intervals() {
    for (count, all, low, high) in
        [(0, 100, 0.0, 0.036_993_5), (5, 96, 0.022_449_6, 0.116_184_8), (3, 3, 0.438_503, 1.0)]
    {
        let rate = Rate::of(count, all);
        assert!((rate.low - low).abs() < 1e-5 && (rate.high - high).abs() < 1e-5, "{count} of {all}: {rate:?}");
    }
    assert_eq!(Rate::of(0, 0).high, 1.0);
}
