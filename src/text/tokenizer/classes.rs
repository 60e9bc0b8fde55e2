//! Characters that a pattern never tells apart are one class.

use std::collections::HashMap;

use regex_syntax::hir::{Class, ClassBytes, ClassBytesRange, Hir, HirKind, Repetition};

/// A set of characters: ranges, both ends included.
type Set = Vec<(u32, u32)>;

/// All sets of characters that a pattern names.
#[derive(Default)]
pub struct Sets {
    numbers: HashMap<Set, usize>,
}

impl Sets {
    /// Adds the sets of a part of the pattern.
    ///
    /// # Errors
    /// It looks around, or is of bytes.
    pub fn collect(&mut self, part: &Hir) -> Result<(), &'static str> {
        match part.kind() {
            HirKind::Empty => Ok(()),
            HirKind::Literal(literal) => {
                let text = str::from_utf8(&literal.0).map_err(|_| "a pattern of bytes")?;
                text.chars().for_each(|character| self.add(one(character)));
                Ok(())
            }
            HirKind::Class(class) => {
                self.add(set_of(class)?);
                Ok(())
            }
            HirKind::Look(_) => Err("a pattern that looks around"),
            HirKind::Repetition(repetition) => self.collect(&repetition.sub),
            HirKind::Capture(capture) => self.collect(&capture.sub),
            HirKind::Concat(parts) | HirKind::Alternation(parts) => {
                parts.iter().try_for_each(|part| self.collect(part))
            }
        }
    }

    fn add(&mut self, set: Set) {
        let number = self.numbers.len();
        self.numbers.entry(set).or_insert(number);
    }

    /// The classes: characters that are in the same sets; and for each set its classes.
    ///
    /// # Errors
    /// There are too many.
    pub fn partition(&self) -> Result<(Classes, Vec<Vec<u8>>), &'static str> {
        const MANY: &str = "a pattern with too many classes of characters";
        if self.numbers.len() > 128 {
            return Err(MANY);
        }
        // where anything changes, and what: sets begin or end there
        let mut changes: Vec<(u32, usize)> = Vec::new();
        for (set, &number) in &self.numbers {
            changes.extend(set.iter().flat_map(|&(first, last)| [(first, number), (last + 1, number)]));
        }
        changes.sort_unstable();
        let mut numbers = HashMap::from([(0_u128, 0_u8)]);
        let mut of_all = vec![0_u8; 0x11_0000];
        let (mut sets, mut from) = (0_u128, 0);
        for (at, number) in changes {
            if from < at as usize {
                let count = numbers.len();
                let class = *numbers.entry(sets).or_insert(count.min(255) as u8);
                of_all[from..at as usize].fill(class);
                from = at as usize;
            }
            sets ^= 1 << number;
        }
        if numbers.len() > 250 {
            return Err(MANY);
        }
        let mut members = vec![Vec::new(); self.numbers.len()];
        for (sets, &class) in &numbers {
            let inside = (0..members.len()).filter(|number| sets >> number & 1 == 1);
            inside.for_each(|number| members[number].push(class));
        }
        Ok((Classes::new(&of_all, numbers.len()), members))
    }

    /// The pattern with classes in place of characters.
    pub fn over_classes(&self, part: &Hir, members: &[Vec<u8>]) -> Hir {
        let class = |set: &Set| {
            let classes = members[self.numbers[set]].iter().map(|&class| ClassBytesRange::new(class, class));
            Hir::class(Class::Bytes(ClassBytes::new(classes)))
        };
        let all = |parts: &[Hir]| parts.iter().map(|part| self.over_classes(part, members)).collect();
        match part.kind() {
            HirKind::Empty | HirKind::Look(_) => Hir::empty(),
            HirKind::Literal(literal) => {
                let text = String::from_utf8_lossy(&literal.0);
                Hir::concat(text.chars().map(|character| class(&one(character))).collect())
            }
            HirKind::Class(found) => set_of(found).map_or_else(|_| Hir::fail(), |set| class(&set)),
            HirKind::Repetition(repetition) => Hir::repetition(Repetition {
                sub: Box::new(self.over_classes(&repetition.sub, members)),
                ..*repetition
            }),
            HirKind::Capture(capture) => self.over_classes(&capture.sub, members),
            HirKind::Concat(parts) => Hir::concat(all(parts)),
            HirKind::Alternation(parts) => Hir::alternation(all(parts)),
        }
    }
}

fn one(character: char) -> Set {
    vec![(character.into(), character.into())]
}

fn set_of(class: &Class) -> Result<Set, &'static str> {
    match class {
        Class::Unicode(class) => {
            Ok(class.iter().map(|range| (range.start().into(), range.end().into())).collect())
        }
        Class::Bytes(class) if class.is_ascii() => {
            Ok(class.iter().map(|range| (range.start().into(), range.end().into())).collect())
        }
        Class::Bytes(_) => Err("a pattern of bytes"),
    }
}

/// The class of every character, in two steps.
pub struct Classes {
    /// How many there are.
    pub count: usize,
    /// Those of ASCII.
    pub ascii: [u8; 0x80],
    /// The block of each 256 code points, and the blocks.
    blocks: Vec<u16>,
    values: Vec<[u8; 256]>,
}

impl Classes {
    fn new(of_all: &[u8], count: usize) -> Self {
        let mut numbers = HashMap::new();
        let (mut blocks, mut values) = (Vec::new(), Vec::new());
        for block in of_all.as_chunks::<256>().0 {
            blocks.push(*numbers.entry(block).or_insert_with(|| {
                values.push(*block);
                values.len() as u16 - 1
            }));
        }
        Self { count, ascii: std::array::from_fn(|at| of_all[at]), blocks, values }
    }

    /// The class of a character.
    #[inline]
    pub fn of(&self, character: char) -> u8 {
        let code = character as usize;
        self.values[usize::from(self.blocks[code >> 8])][code & 0xff]
    }
}
