//! What the macro says to what cannot be meant.

#[test]
fn errors_point_at_what_is_wrong_and_say_what_is_allowed() {
    let cases = trybuild::TestCases::new();
    cases.pass("tests/ui/pass/*.rs");
    cases.compile_fail("tests/ui/fail/*.rs");
}
