use super::*;

#[test]
fn margins_are_rounded_so_that_a_rollout_can_move() {
    let check = |replicas: i32, surge: IntOrString, unavailable: IntOrString, expect: (i32, i32)| {
        let mut spec = DeploymentSpec { replicas: Some(replicas), ..DeploymentSpec::default() };
        let rolling = spec.strategy.get_or_insert_default().rolling_update.get_or_insert_default();
        rolling.max_surge = Some(surge);
        rolling.max_unavailable = Some(unavailable);
        assert_eq!(margins(&spec), expect);
    };
    let percent = |text: &str| IntOrString::String(text.to_owned());
    check(10, percent("25%"), percent("25%"), (3, 2));
    check(3, percent("25%"), percent("25%"), (1, 0));
    check(1, percent("0%"), percent("50%"), (0, 1));
    check(4, IntOrString::Int(0), IntOrString::Int(9), (0, 4));
    check(0, percent("25%"), percent("25%"), (0, 0));
    check(2, percent("nonsense"), IntOrString::Int(-1), (0, 1));
}
