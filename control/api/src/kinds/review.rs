//! Reviews: questions about who asks and what is allowed, in the form of objects. They are answered and never stored.

use k8s_openapi::api::authentication::v1 as authentication;
use k8s_openapi::api::authorization::v1 as authorization;

use crate::resource::Resource;
use crate::strategy::{Hooks, Typed};
use crate::table;

macro_rules! reviews {
    ($($(#[$about:meta])+ $name:ident = $group:literal, $module:ident::$kind:ident, $plural:literal, $singular:literal, $namespaced:literal;)+) => {
        $(
            $(#[$about])+
            pub static $name: Resource = Resource {
                group: $group,
                version: "v1",
                kind: stringify!($kind),
                plural: $plural,
                singular: $singular,
                short_names: &[],
                categories: &[],
                namespaced: $namespaced,
                delete_collection: false,
                create_on_update: false,
                update_needs_version: false,
                subresources: &[],
                columns: &[table::NAME],
                row: |object, _| vec![table::name(object)],
                fields: &[],
                strategy: &Typed::<$module::$kind>::new(Hooks::NONE),
                stored_as: None,
                deprecation: None,
            };
        )+

        /// Every review.
        pub static REVIEWS: &[&Resource] = &[$(&$name),+];
    };
}

reviews! {
    /// Who am I?
    SELF_SUBJECT = "authentication.k8s.io", authentication::SelfSubjectReview, "selfsubjectreviews", "selfsubjectreview", false;
    /// Whose token is this?
    TOKEN = "authentication.k8s.io", authentication::TokenReview, "tokenreviews", "tokenreview", false;
    /// May somebody do this in this namespace?
    LOCAL_SUBJECT_ACCESS = "authorization.k8s.io", authorization::LocalSubjectAccessReview, "localsubjectaccessreviews", "localsubjectaccessreview", true;
    /// May I do this?
    SELF_SUBJECT_ACCESS = "authorization.k8s.io", authorization::SelfSubjectAccessReview, "selfsubjectaccessreviews", "selfsubjectaccessreview", false;
    /// What may I do?
    SELF_SUBJECT_RULES = "authorization.k8s.io", authorization::SelfSubjectRulesReview, "selfsubjectrulesreviews", "selfsubjectrulesreview", false;
    /// May somebody do this?
    SUBJECT_ACCESS = "authorization.k8s.io", authorization::SubjectAccessReview, "subjectaccessreviews", "subjectaccessreview", false;
}
