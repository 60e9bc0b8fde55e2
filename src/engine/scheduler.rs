//! Who takes part in a step, and with how many tokens. Decides with integers only.

/// Shares `budget` tokens out among requests that have `left[i]` tokens to compute (1 while they decode): first one
/// to each that decodes, so that no prefill holds them up, then what remains to the others in order of arrival.
/// Writes how many each takes into `turns`, 0 for those that wait.
pub fn share(left: impl Iterator<Item = usize> + Clone, budget: usize, turns: &mut Vec<usize>) {
    turns.clear();
    let mut rest = budget;
    turns.extend(left.clone().map(|left| {
        let turn = usize::from(left == 1).min(rest);
        rest -= turn;
        turn
    }));
    for (turn, left) in turns.iter_mut().zip(left) {
        if left > 1 {
            *turn = left.min(rest);
            rest -= *turn;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turns(left: &[usize], budget: usize) -> Vec<usize> {
        let mut turns = Vec::new();
        share(left.iter().copied(), budget, &mut turns);
        turns
    }

    #[test]
    fn decoding_requests_go_first_and_prefill_takes_the_rest_in_order() {
        assert_eq!(turns(&[100, 1, 50, 1], 64), [62, 1, 0, 1]);
        assert_eq!(turns(&[10, 1, 50], 64), [10, 1, 50]);
        assert_eq!(turns(&[10, 1, 500], 64), [10, 1, 53]);
    }

    #[test]
    fn the_budget_is_never_exceeded_and_someone_always_moves() {
        for budget in 1..20 {
            for shape in 0..625_usize {
                let left = [1 + shape % 5, 1 + shape / 5 % 5, 1 + shape / 25 % 5, 1 + shape / 125 % 5];
                let turns = turns(&left, budget);
                let sum: usize = turns.iter().sum();
                assert!(sum <= budget && sum > 0);
                assert!(turns.iter().zip(left).all(|(&turn, left)| turn <= left));
            }
        }
    }
}
