//! Which experts a token goes to: for both backends, since a choice that differs is no matter of rounding.

use super::memory::CpuMemory;
use crate::backend::{Groups, Routed, Routing, Scoring};

/// The job of [`crate::backend::Backend::route`].
pub fn route(
    memory: &mut CpuMemory,
    rows: usize,
    routing: &Routing,
    correction: Option<&[f32]>,
    with: &Routed,
) {
    let (all, per_token) = (with.scores.cols, with.experts.cols);
    assert!(routing.per_token == per_token && per_token <= all, "route: more choices than experts");
    assert!(correction.is_none_or(|correction| correction.len() == all), "route: columns differ");
    let arena = memory.arena();
    for row in 0..rows {
        score(routing.scoring, arena.slice_mut(with.scores.row(row)));
        let (scores, experts) = arena.read_write::<f32, u32>(with.scores.row(row), with.experts.row(row));
        top_experts(routing, scores, correction, experts);
        let (scores, weights) = arena.read_write::<f32, f32>(with.scores.row(row), with.weights.row(row));
        weights.copy_from_slice(&scores[..per_token]); // their place; values follow
        for slot in 0..per_token {
            let expert = arena.slice::<u32>(with.experts.row(row))[slot] as usize;
            let value = match routing.scoring {
                Scoring::Mixer { jitter } => {
                    let (experts, scores) =
                        (arena.slice::<u32>(with.experts.row(row)), arena.slice::<f32>(with.scores.row(row)));
                    mixed(scores, &experts[..slot], expert, jitter)
                }
                _ => arena.slice::<f32>(with.scores.row(row))[expert],
            };
            arena.slice_mut::<f32>(with.weights.row(row))[slot] = value;
        }
        weigh(routing, arena.slice_mut(with.weights.row(row)));
    }
    place(memory, rows, with);
}

/// The weights of all experts, where they are of each by itself.
fn score(scoring: Scoring, scores: &mut [f32]) {
    match scoring {
        Scoring::Softmax => softmax(scores),
        Scoring::Sigmoid => scores.iter_mut().for_each(|score| *score = 1.0 / (1.0 + (-*score).exp())),
        Scoring::Chosen | Scoring::Mixer { .. } => {}
    }
}

fn softmax(values: &mut [f32]) {
    let most = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    values.iter_mut().for_each(|value| *value = (*value - most).exp());
    let sum: f32 = values.iter().sum();
    values.iter_mut().for_each(|value| *value /= sum);
}

/// The best experts in turn, of equals the first. With scores that are not numbers: some experts.
fn top_experts(routing: &Routing, scores: &[f32], correction: Option<&[f32]>, experts: &mut [u32]) {
    let value = |expert: usize| scores[expert] + correction.map_or(0.0, |correction| correction[expert]);
    let mut open = [true; Groups::MOST];
    let group = match routing.groups {
        None => scores.len(),
        Some(groups) => {
            let size = scores.len() / groups.count;
            let mut sums = [0.0; Groups::MOST];
            for (index, sum) in sums[..groups.count].iter_mut().enumerate() {
                let members = index * size..(index + 1) * size;
                let mut taken = usize::MAX; // `best` is 1 or 2
                for _ in 0..groups.best {
                    let next = best(members.clone().filter(|&expert| expert != taken), value);
                    (*sum, taken) = (*sum + value(next), next);
                }
            }
            open = [false; Groups::MOST];
            for _ in 0..groups.chosen {
                open[best((0..groups.count).filter(|&index| !open[index]), |index| sums[index])] = true;
            }
            size
        }
    };
    for slot in 0..experts.len() {
        let (chosen, rest) = experts.split_at_mut(slot);
        let candidates =
            (0..scores.len()).filter(|&expert| open[expert / group] && !chosen.contains(&(expert as u32)));
        rest[0] = best(candidates, value) as u32;
    }
}

fn best(candidates: impl Iterator<Item = usize>, value: impl Fn(usize) -> f32) -> usize {
    candidates.reduce(|best, next| if value(next) > value(best) { next } else { best }).expect("candidates")
}

/// The weight of the best of those that were not chosen before, among those near it.
fn mixed(scores: &[f32], before: &[u32], expert: usize, jitter: f32) -> f32 {
    let most = scores[expert];
    let near = |score: f32| {
        let below = (most - score) / score.abs().max(most);
        // not `<=`: a score that is not a number is near, as where this comes from
        if below > 2.0 * jitter { 0.0 } else { (score - most).exp() }
    };
    let rest = scores.iter().enumerate().filter(|(index, _)| !before.contains(&(*index as u32)));
    1.0 / rest.map(|(_, &score)| near(score)).sum::<f32>()
}

fn weigh(routing: &Routing, weights: &mut [f32]) {
    if routing.scoring == Scoring::Chosen {
        softmax(weights);
    }
    if routing.normalized {
        let sum = weights.iter().sum::<f32>() + 1e-20;
        weights.iter_mut().for_each(|weight| *weight /= sum);
    }
    weights.iter_mut().for_each(|weight| *weight *= routing.scale);
}

/// Gives each pair of a token and an expert its row among those of the expert, in the order of the tokens.
fn place(memory: &mut CpuMemory, rows: usize, with: &Routed) {
    let (all, per_token) = (with.scores.cols, with.experts.cols);
    let arena = memory.arena();
    arena.slice_mut::<u32>(with.starts.row(0)).fill(0);
    for row in 0..rows {
        let (experts, starts) = arena.read_write::<u32, u32>(with.experts.row(row), with.starts.row(0));
        experts.iter().for_each(|&expert| starts[expert as usize + 1] += 1);
    }
    let starts = arena.slice_mut::<u32>(with.starts.row(0));
    for expert in 0..all {
        starts[expert + 1] += starts[expert];
    }
    // each start moves on as its rows are given out, and ends where the next one began
    for row in 0..rows {
        for slot in 0..per_token {
            let expert = arena.slice::<u32>(with.experts.row(row))[slot] as usize;
            let start = &mut arena.slice_mut::<u32>(with.starts.row(0))[expert];
            let place = *start;
            *start += 1;
            arena.slice_mut::<u32>(with.places.row(row))[slot] = place;
        }
    }
    let starts = arena.slice_mut::<u32>(with.starts.row(0));
    starts.copy_within(0..all, 1);
    starts[0] = 0;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_that_are_not_numbers_still_choose_experts_that_differ() {
        for groups in [None, Some(Groups { count: 4, chosen: 2, best: 2 })] {
            let scoring = Scoring::Softmax;
            let routing = Routing { per_token: 4, scoring, normalized: true, groups, scale: 1.0 };
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut experts = [9; 4];
                top_experts(&routing, &[bad; 8], None, &mut experts);
                experts.sort_unstable();
                assert!(experts.windows(2).all(|pair| pair[0] < pair[1]) && experts[3] < 8, "{experts:?}");
            }
        }
    }

    #[test]
    fn groups_are_chosen_by_the_sum_of_their_best() {
        let routing = |best| Routing {
            per_token: 2,
            scoring: Scoring::Sigmoid,
            normalized: false,
            groups: Some(Groups { count: 3, chosen: 1, best }),
            scale: 1.0,
        };
        let scores = [0.9, 0.1, 0.6, 0.5, 0.3, 0.3];
        let mut experts = [0; 2];
        top_experts(&routing(1), &scores, None, &mut experts);
        assert_eq!(experts, [0, 1]);
        top_experts(&routing(2), &scores, None, &mut experts);
        assert_eq!(experts, [2, 3]);
        top_experts(&routing(2), &scores, Some(&[0.0, 0.0, 0.0, 0.0, 1.0, 2.0]), &mut experts);
        assert_eq!(experts, [5, 4]);
    }
}
