//! The table of the README says what is tested.

use tiercache_matrix::table;

#[test]
fn the_table_of_the_readme_is_what_is_tested() {
    let readme = include_str!("../../README.md");
    assert!(readme.contains(&table()), "matrix/README.md should have:\n{}", table());
}
