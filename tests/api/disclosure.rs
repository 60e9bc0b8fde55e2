//! What an application can rely on when it sends data to third parties. What it cannot do does not compile: see the
//! documentation of `ThirdPartyRequest` and `Model`.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use amnesic::privacy::{
    Alias, Anthropic, Disclosure, Google, Local, Model, ModelAliases, Policy, Provider, Retention,
    ThirdParty, ThirdPartyRequest, Trains,
};
use amnesic::{Error, Request};

/// A provider that the application has a contract with.
struct Partner;

impl Provider for Partner {
    const NAME: &'static str = "Partner";
    const POLICY_URL: &'static str = "https://partner.example/contract-17";
    const RETAINS: Retention = Retention::None;
    const TRAINS: Trains = Trains::Never;
}

/// What stands for a client of a provider: it takes nothing but this.
fn send<P: Provider>(request: ThirdPartyRequest<'_, P>) -> (Alias, &'static str, SystemTime) {
    (request.model().alias(), P::NAME, request.disclosure().at())
}

fn alias(name: &str) -> Alias {
    Alias::new(name).unwrap()
}

fn registry() -> ModelAliases {
    let mut models = ModelAliases::default();
    models.insert(alias("private"), Model::<Local>::new(alias("qwen-0.5b"))).unwrap();
    models.insert(alias("partner"), Model::<ThirdParty<Partner>>::new(alias("partner-large"))).unwrap();
    models.insert(alias("google"), Model::<ThirdParty<Google>>::new(alias("gemini"))).unwrap();
    models.chain(alias("best"), alias("partner")).unwrap();
    models
}

#[test]
fn a_request_reaches_a_third_party_by_way_of_its_users_knowledge() {
    let models = registry();
    let shown = models.policy("best").unwrap();
    assert_eq!(
        shown.to_string(),
        "third party: content goes to Partner, which keeps nothing and does not train on it; \
         https://partner.example/contract-17"
    );
    let at = UNIX_EPOCH + Duration::from_secs(1_790_000_000);
    let disclosure = Disclosure::<Partner>::acknowledged(&shown, at).unwrap();
    let model = models.resolve::<ThirdParty<Partner>>("best").unwrap();
    let request = ThirdPartyRequest::new(model, Request::prompt("canary"), &disclosure);
    assert!(!format!("{request:?}").contains("canary"));
    assert_eq!(send(request), (alias("partner-large"), "Partner", at));
}

#[test]
fn what_was_shown_for_one_is_no_disclosure_for_another() {
    let models = registry();
    for name in ["private", "partner", "best"] {
        let shown = models.policy(name).unwrap();
        let error = Disclosure::<Google>::acknowledged(&shown, SystemTime::now()).unwrap_err();
        assert!(matches!(error, Error::Disclosure(_)), "{name}");
        assert_eq!(
            error.to_string(),
            "disclosure: what was shown is not the current policy of Google (Gemini API)"
        );
    }
    assert!(Disclosure::<Google>::acknowledged(&models.policy("google").unwrap(), SystemTime::now()).is_ok());
}

#[test]
fn a_name_that_comes_from_outside_never_leads_out_of_its_class() {
    let models = registry();
    assert_eq!(models.policy("private").unwrap(), Policy::Local);
    for name in ["partner", "best", "google"] {
        assert!(matches!(models.resolve::<Local>(name), Err(Error::ModelAlias(_))), "{name}");
    }
    assert!(models.resolve::<ThirdParty<Anthropic>>("google").is_err());
    for name in ["", "canary", "canary with spaces"] {
        let told = models.resolve::<Local>(name).unwrap_err().to_string();
        assert!(!told.contains("canary"), "{told}");
    }
}

#[test]
fn proofs_and_models_cross_threads() {
    fn shared<T: Send + Sync + 'static>() {}
    shared::<Disclosure<Google>>();
    shared::<Model<ThirdParty<Google>>>();
    shared::<ModelAliases>();
    shared::<ThirdPartyRequest<'static, Google>>();
}
