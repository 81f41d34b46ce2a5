//! What a manager owned and no longer wants goes, unless somebody else owns it.

use serde_json::Value;

use super::typed::{self, Shape};
use crate::managed::FieldSet;
use crate::merge_keys::Rules;
use crate::resource::Resource;
use crate::schema::Kind;

/// Takes out of the object what is in `last` and not in `owned`.
///
/// An item of a list goes as a whole with whatever is in it, if it was owned itself. A declared field counts as owned by whoever owns
/// anything in it.
pub(super) fn prune(resource: &Resource, object: &mut Value, last: &FieldSet, owned: &FieldSet) {
    pruned(&resource.strategy.kind(), Rules::default(), object, last, owned, true);
}

/// Whether what was in `value` is gone altogether.
fn pruned(
    kind: &Kind,
    rules: Rules,
    value: &mut Value,
    last: &FieldSet,
    owned: &FieldSet,
    root: bool,
) -> bool {
    let nobody = FieldSet::default();
    let shape = typed::shape(kind, rules);
    let declared = matches!(shape, Shape::Struct(_));
    // None: it goes. Otherwise what remains to be looked at inside.
    let judge = |step: &str| {
        let Some(last) = last.below(step) else { return Some(None) };
        let owned = owned.below(step).unwrap_or(&nobody);
        let was_owned = declared || last.has_root();
        let is_owned = owned.has_root() || (declared && !owned.is_empty());
        let kept = !was_owned || is_owned || (root && step == "f:metadata");
        kept.then_some(Some((last, owned)))
    };
    match (&shape, value) {
        (Shape::Struct(_) | Shape::Map(_), Value::Object(fields)) => {
            let before = fields.len();
            fields.retain(|name, value| match judge(&format!("f:{name}")) {
                None => false,
                Some(None) => true,
                Some(Some((last, owned))) => match shape.field(name) {
                    Some((kind, rules)) => !pruned(kind, rules, value, last, owned, false),
                    None => true,
                },
            });
            fields.is_empty() && before > 0
        }
        (Shape::List(item, ..), Value::Array(items)) => {
            let before = items.len();
            items.retain_mut(|value| match judge(&shape.step(value)) {
                None => false,
                Some(None) => true,
                Some(Some((last, owned))) => !pruned(item, Rules::default(), value, last, owned, false),
            });
            items.is_empty() && before > 0
        }
        _ => false,
    }
}
