//! What a schema grows to when it is compiled.

/// Counts, none of them below what llguidance will meet; they saturate.
///
/// A `$ref` that stands alone is compiled once, wherever it stands, and counts as one subschema. Where it meets other
/// constraints, what it points to is copied: for that, the `deep` counts follow every `$ref`.
#[derive(Clone, Copy, Default)]
pub struct Size {
    pub subschemas: usize,
    /// Alternatives in it, at whatever depth, beyond the first.
    pub forks: usize,
    /// Searches for a text that matches a pattern, and for one that matches two.
    pub patterns: usize,
    pub deep_patterns: usize,
    /// The cubes of the numbers of named properties beside a limit of their number.
    pub choices: usize,
    pub deep_choices: usize,
    /// Properties of the object itself.
    pub named: usize,
    /// It has a limit of its properties.
    pub limited: bool,
}

impl Size {
    /// A schema that says nothing.
    pub fn one() -> Self {
        Self { subschemas: 1, ..Self::default() }
    }

    /// `count` alternatives, whose parts are to be added.
    pub fn alternatives(count: usize) -> Self {
        Self { forks: count.saturating_sub(1), ..Self::one() }
    }

    /// A `$ref` to this.
    pub fn referred(self) -> Self {
        Self { subschemas: 1, patterns: 0, choices: 0, ..self }
    }

    /// Counts the patterns of an object or a string.
    pub fn add_patterns(&mut self, count: usize) {
        self.patterns = self.patterns.saturating_add(count);
        self.deep_patterns = self.deep_patterns.saturating_add(count);
    }

    /// Counts the object's own properties.
    pub fn set_named(&mut self, named: usize, limited: bool) {
        (self.named, self.limited) = (named, limited);
        if limited {
            let choices = named.saturating_pow(3);
            self.choices = self.choices.saturating_add(choices);
            self.deep_choices = self.deep_choices.saturating_add(choices);
        }
    }

    /// With a subschema in it.
    pub fn with(self, part: Self) -> Self {
        Self {
            subschemas: self.subschemas.saturating_add(part.subschemas),
            forks: self.forks.saturating_add(part.forks),
            patterns: self.patterns.saturating_add(part.patterns),
            deep_patterns: self.deep_patterns.saturating_add(part.deep_patterns),
            choices: self.choices.saturating_add(part.choices),
            deep_choices: self.deep_choices.saturating_add(part.deep_choices),
            ..self
        }
    }

    /// Both at once: each part of the one meets each alternative of the other.
    pub fn and(self, other: Self) -> Self {
        let (mine, others) = (self.forks.saturating_add(1), other.forks.saturating_add(1));
        let both = |a: usize, b: usize| a.saturating_mul(others).saturating_add(b.saturating_mul(mine));
        let (named, limited) = (self.named.saturating_add(other.named), self.limited || other.limited);
        let pairs = mine.saturating_mul(others);
        let own = if limited { named.saturating_pow(3).saturating_mul(pairs) } else { 0 };
        let patterns = both(self.deep_patterns, other.deep_patterns);
        let choices = both(self.deep_choices, other.deep_choices).max(own);
        Self {
            subschemas: both(self.subschemas, other.subschemas),
            forks: pairs - 1,
            patterns,
            deep_patterns: patterns,
            choices,
            deep_choices: choices,
            named,
            limited,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern() -> Size {
        let mut size = Size::one();
        size.add_patterns(1);
        size
    }

    #[test]
    fn alternatives_multiply_where_they_meet_and_add_up_where_they_do_not() {
        let three = (0..3).fold(Size::alternatives(3), |sum, _| sum.with(pattern()));
        assert_eq!((three.forks, three.patterns), (2, 3));
        let both = three.and(three);
        assert_eq!((both.forks, both.patterns), (8, 18));
        let beside = Size::one().with(three).with(three);
        assert_eq!((beside.forks, beside.patterns), (4, 6));
    }

    #[test]
    fn what_is_referred_to_counts_again_where_it_is_copied_only() {
        let shared = pattern().referred();
        let twice = Size::one().with(shared).with(shared);
        assert_eq!((twice.patterns, twice.deep_patterns), (0, 2));
        assert_eq!(twice.and(Size::alternatives(2)).patterns, 4);
    }

    #[test]
    fn counts_saturate() {
        let mut size = Size::alternatives(usize::MAX);
        size.set_named(usize::MAX, true);
        size.add_patterns(usize::MAX);
        let square = size.and(size);
        assert_eq!((square.patterns, square.choices), (usize::MAX, usize::MAX));
    }
}
