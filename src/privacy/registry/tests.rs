use crate::error::Error;
use std::fmt;

use super::super::models::{Local, ThirdParty};
use super::super::policy::{Anthropic, Google, LOCAL, Provider, Retention, Trains};
use super::*;
use crate::sample::rng::mix;

type Gemini = ThirdParty<Google>;
type Claude = ThirdParty<Anthropic>;

fn alias(name: &str) -> Alias {
    Alias::new(name).unwrap()
}

fn model<C: PolicyClass>(name: &str) -> Model<C> {
    Model::new(alias(name))
}

fn reason<T: fmt::Debug>(result: Result<T>) -> AliasReason {
    match result {
        Err(Error::ModelAlias(reason)) => reason,
        other => panic!("{other:?}"),
    }
}

#[test]
fn names_lead_to_models_and_to_names() {
    let mut models = ModelAliases::default();
    models.insert(alias("fast"), model::<Local>("qwen")).unwrap();
    models.chain(alias("default"), alias("fast")).unwrap();
    models.chain(alias("chat"), alias("default")).unwrap();
    assert_eq!(models.resolve::<Local>("chat").unwrap().alias(), alias("qwen"));
    assert_eq!(models.policy("chat").unwrap(), Policy::Local);
    models.repoint(alias("fast"), model::<Local>("llama")).unwrap();
    assert_eq!(models.resolve::<Local>("chat").unwrap().alias(), alias("llama"));
    models.repoint(alias("default"), model::<Local>("gemma")).unwrap();
    assert_eq!(models.resolve::<Local>("chat").unwrap().alias(), alias("gemma"));
    assert_eq!(models.resolve::<Local>("fast").unwrap().alias(), alias("llama"));
}

#[test]
fn what_cannot_be_done_says_why() {
    let mut models = ModelAliases::default();
    models.insert(alias("a"), model::<Local>("qwen")).unwrap();
    models.chain(alias("b"), alias("a")).unwrap();
    assert_eq!(reason(models.insert(alias("a"), model::<Local>("qwen"))), AliasReason::Taken);
    assert_eq!(reason(models.repoint(alias("c"), model::<Local>("qwen"))), AliasReason::Unknown);
    assert_eq!(reason(models.chain(alias("c"), alias("d"))), AliasReason::Unknown);
    assert_eq!(reason(models.chain(alias("a"), alias("b"))), AliasReason::Circle);
    assert_eq!(reason(models.chain(alias("a"), alias("a"))), AliasReason::Circle);
    assert_eq!(reason(models.remove(alias("c"))), AliasReason::Unknown);
    assert_eq!(reason(models.resolve::<Local>("c")), AliasReason::Unknown);
    assert!(matches!(models.resolve::<Local>("two words"), Err(Error::Request { field: "alias", .. })));
    assert_eq!(models.resolve::<Local>("b").unwrap().alias(), alias("qwen"), "nothing of it has changed");
}

#[test]
fn no_name_crosses_by_any_of_the_ways() {
    let mut models = ModelAliases::default();
    models.insert(alias("local"), model::<Local>("qwen")).unwrap();
    models.insert(alias("google"), model::<Gemini>("gemini")).unwrap();
    models.insert(alias("anthropic"), model::<Claude>("claude")).unwrap();
    let to_google = AliasReason::OtherClass { class: LOCAL, wanted: Google::NAME };
    assert_eq!(reason(models.repoint(alias("local"), model::<Gemini>("gemini"))), to_google);
    assert_eq!(reason(models.chain(alias("local"), alias("google"))), to_google);
    assert_eq!(reason(models.resolve::<Gemini>("local")), to_google);
    assert_eq!(
        reason(models.chain(alias("google"), alias("anthropic"))),
        AliasReason::OtherClass { class: Google::NAME, wanted: Anthropic::NAME }
    );
    models.remove(alias("local")).unwrap();
    assert_eq!(reason(models.resolve::<Local>("local")), AliasReason::Unknown);
    assert_eq!(reason(models.insert(alias("local"), model::<Gemini>("gemini"))), to_google);
    assert_eq!(reason(models.chain(alias("local"), alias("google"))), to_google);
    models.insert(alias("local"), model::<Local>("llama")).unwrap();
    assert_eq!(models.resolve::<Local>("local").unwrap().alias(), alias("llama"));
    let told = Error::from(to_google).to_string();
    assert_eq!(told, "model alias: the name belongs to class `local`, not `Google (Gemini API)`");
}

#[test]
fn providers_that_say_the_same_are_two_classes() {
    struct Twin;
    impl Provider for Twin {
        const NAME: &'static str = Google::NAME;
        const POLICY_URL: &'static str = Google::POLICY_URL;
        const RETAINS: Retention = Google::RETAINS;
        const TRAINS: Trains = Google::TRAINS;
    }
    let mut models = ModelAliases::default();
    models.insert(alias("a"), model::<Gemini>("gemini")).unwrap();
    assert!(models.resolve::<ThirdParty<Twin>>("a").is_err());
    assert!(models.repoint(alias("a"), model::<ThirdParty<Twin>>("gemini")).is_err());
}

#[test]
fn there_is_a_limit_on_names() {
    let mut models = ModelAliases::default();
    for count in 0..ModelAliases::MAX_NAMES {
        models.insert(alias(&format!("m{count}")), model::<Local>("qwen")).unwrap();
    }
    assert_eq!(reason(models.insert(alias("x"), model::<Local>("qwen"))), AliasReason::Full);
    assert_eq!(reason(models.chain(alias("x"), alias("m0"))), AliasReason::Full);
    models.remove(alias("m1")).unwrap();
    assert_eq!(reason(models.insert(alias("x"), model::<Local>("qwen"))), AliasReason::Full);
    models.chain(alias("m1"), alias("m0")).unwrap();
    models.chain(alias("m2"), alias("m0")).unwrap();
}

#[test]
fn debug_prints_names_only() {
    let mut models = ModelAliases::default();
    models.insert(alias("fast"), model::<Gemini>("gemini")).unwrap();
    assert!(format!("{models:?}").contains("fast"));
    assert_eq!(format!("{:?}", model::<Gemini>("gemini")), "Model(gemini, Google (Gemini API))");
}

const NAMES: [&str; 6] = ["a", "b", "c", "d", "e", "f"];

/// Models of each class carry the class's number in their own names.
const CLASSES: [&str; 3] = ["local", "google", "anthropic"];

/// The classes under which `name` can be resolved, and the models' names.
fn ways(models: &ModelAliases, name: &str) -> Vec<(usize, Alias)> {
    let found = [
        models.resolve::<Local>(name).ok().map(Model::alias),
        models.resolve::<Gemini>(name).ok().map(Model::alias),
        models.resolve::<Claude>(name).ok().map(Model::alias),
    ];
    found.into_iter().enumerate().filter_map(|(class, alias)| Some((class, alias?))).collect()
}

fn act(models: &mut ModelAliases, bits: u64) -> Result<()> {
    let name = alias(NAMES[(bits % 6) as usize]);
    let other = alias(NAMES[(bits / 6 % 6) as usize]);
    let class = (bits / 36 % 3) as usize;
    let target = alias(CLASSES[class]);
    match (bits / 108 % 8, class) {
        (0 | 1, 0) => models.insert(name, Model::<Local>::new(target)),
        (0 | 1, 1) => models.insert(name, Model::<Gemini>::new(target)),
        (0 | 1, _) => models.insert(name, Model::<Claude>::new(target)),
        (2 | 3, 0) => models.repoint(name, Model::<Local>::new(target)),
        (2 | 3, 1) => models.repoint(name, Model::<Gemini>::new(target)),
        (2 | 3, _) => models.repoint(name, Model::<Claude>::new(target)),
        (4..=6, _) => models.chain(name, other),
        _ => models.remove(name),
    }
}

#[test]
fn no_sequence_of_operations_makes_a_name_cross() {
    let (mut done, mut refused) = (0, 0);
    for seed in 0..2000_u64 {
        let mut models = ModelAliases::default();
        let mut first: HashMap<&str, usize> = HashMap::new();
        for step in 0..60 {
            match act(&mut models, mix(seed << 32 | step)) {
                Ok(()) => done += 1,
                Err(Error::ModelAlias(_)) => refused += 1,
                Err(other) => panic!("{other}"),
            }
            for name in NAMES {
                let ways = ways(&models, name);
                assert!(ways.len() <= 1, "{name} is of two classes");
                for (class, model) in ways {
                    assert_eq!(model.as_str(), CLASSES[class], "{name} leads out of its class");
                    assert_eq!(*first.entry(name).or_insert(class), class, "{name} has changed its class");
                }
            }
        }
    }
    assert!(done > 20_000 && refused > 20_000, "{done} done, {refused} refused: both must be met");
}
