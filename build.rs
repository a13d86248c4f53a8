//! Tells the library its version (from the control file, where alone it stands) and the commit it was built from.

use std::fs;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=litmus_pgnats.control");
    println!("cargo::rerun-if-changed=.git/HEAD");
    println!("cargo::rerun-if-changed=.git/logs/HEAD");
    let control = fs::read_to_string("litmus_pgnats.control").expect("litmus_pgnats.control");
    let version = control
        .lines()
        .find_map(|line| line.strip_prefix("default_version = "))
        .expect("default_version");
    set("VERSION", version.trim_matches('\''));
    set(
        "COMMIT_DATE",
        &git(&["show", "--no-patch", "--format=%cs", "HEAD"]),
    );
    set("SHORT_COMMIT", &git(&["rev-parse", "--short=8", "HEAD"]));
    set("BRANCH", &git(&["rev-parse", "--abbrev-ref", "HEAD"]));
    set("LAST_TAG", &git(&["describe", "--tags", "--abbrev=0"]));
}

fn set(name: &str, value: &str) {
    println!("cargo::rustc-env=LITMUS_PGNATS_{name}={value}");
}

/// Empty where there is no repository, as in a source archive.
fn git(arguments: &[&str]) -> String {
    match Command::new("git").args(arguments).output() {
        Ok(output) if output.status.success() => String::from_utf8_lossy(&output.stdout).trim().to_string(),
        _ => String::new(),
    }
}
