//! install.sh, with a pg_config that says what the test wants: no server is needed to copy files.

mod support;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

/// A package, and a server's directories beside it.
struct Place {
    directory: TempDir,
}

/// The bytes of an ELF header that tell the machine: x86-64 and AArch64.
const X86_64: [u8; 2] = [0x3e, 0x00];
const AARCH64: [u8; 2] = [0xb7, 0x00];

impl Place {
    /// A package for PostgreSQL 16 on x86_64, and a server of this version for this machine.
    fn new(version: &str, machine: [u8; 2]) -> Self {
        let place = Self {
            directory: tempfile::tempdir().expect("a directory"),
        };
        for part in ["package", "lib", "share/extension", "bin"] {
            fs::create_dir_all(place.path(part)).expect("create");
        }
        for (name, text) in [
            ("BUILD", "version=1.2.3\npg_major=16\narch=x86_64\n"),
            ("litmus_pgnats.so", "library"),
            ("litmus_pgnats.control", "default_version = '1.2.3'"),
            ("litmus_pgnats--1.2.3.sql", "SELECT 1;"),
            ("litmus_pgnats--1.2.2--1.2.3.sql", "SELECT 2;"),
        ] {
            place.write(&format!("package/{name}"), text.as_bytes());
        }
        let mut header = vec![0; 64];
        header[18..20].copy_from_slice(&machine);
        place.write("bin/postgres", &header);
        let root = place.directory.path().display();
        let script = format!(
            "#!/bin/sh\ncase $1 in --version) echo 'PostgreSQL {version}' ;; --pkglibdir) echo {root}/lib ;;\n\
             --sharedir) echo {root}/share ;; --bindir) echo {root}/bin ;; esac\n"
        );
        place.write("bin/pg_config", script.as_bytes());
        fs::set_permissions(place.path("bin/pg_config"), fs::Permissions::from_mode(0o755)).expect("chmod");
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn write(&self, name: &str, content: &[u8]) {
        fs::write(self.path(name), content).expect("write");
    }

    /// Runs install.sh under a umask that would make files private; what it printed, or why it failed.
    fn install(&self, arguments: &[&str]) -> Result<String, String> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("install.sh");
        let output = Command::new("sh")
            .args(["-c", "umask 077; exec sh \"$@\"", "sh"])
            .arg(script)
            .arg("--from")
            .arg(self.path("package"))
            .args(arguments)
            .arg(self.path("bin/pg_config"))
            .output()
            .expect("run install.sh");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() {
            Ok(text(&output.stdout))
        } else {
            Err(text(&output.stderr))
        }
    }

    /// The names and modes of what stands in the server's directories.
    fn installed(&self) -> Vec<(String, u32)> {
        let mut files = Vec::new();
        for part in ["lib", "share/extension"] {
            for entry in fs::read_dir(self.path(part)).expect("read").flatten() {
                let mode = entry.metadata().expect("metadata").mode() & 0o7777;
                files.push((entry.file_name().to_string_lossy().into_owned(), mode));
            }
        }
        files.sort();
        files
    }
}

#[test]
fn installs_and_takes_away_again() {
    let place = Place::new("16.4 (Debian 16.4-1)", X86_64);
    let said = place.install(&[]).expect("installed");
    assert!(said.contains("CREATE EXTENSION litmus_pgnats;"), "{said}");
    let expected = [
        ("litmus_pgnats--1.2.2--1.2.3.sql", 0o644),
        ("litmus_pgnats--1.2.3.sql", 0o644),
        ("litmus_pgnats.control", 0o644),
        ("litmus_pgnats.so", 0o755),
    ]
    .map(|(name, mode)| (name.to_owned(), mode));
    assert_eq!(place.installed(), expected);

    place.write("lib/other.so", b"somebody else's");
    let said = place.install(&["--uninstall"]).expect("uninstalled");
    assert!(said.contains("DROP EXTENSION"), "{said}");
    assert_eq!(place.installed(), [("other.so".to_owned(), 0o644)]);
    let said = place.install(&["--uninstall"]).expect("uninstalled again");
    assert!(said.contains("is not installed"), "{said}");
}

/// Twice is once: equal files stay the ones that they are. A different one takes the name as a new file, so a process
/// that has the old one mapped keeps it.
#[test]
fn leaves_what_is_in_use_alone() {
    let place = Place::new("16.4", X86_64);
    place.install(&[]).expect("installed");
    let library = place.path("lib/litmus_pgnats.so");
    let inode = || fs::metadata(&library).expect("metadata").ino();
    let first = inode();
    let mut mapped = fs::File::open(&library).expect("open");
    let said = place.install(&[]).expect("installed again");
    assert!(said.contains("nothing to do"), "{said}");
    assert_eq!(inode(), first);

    place.write("package/litmus_pgnats.so", b"newer library");
    place.install(&[]).expect("installed over");
    assert_ne!(inode(), first);
    assert_eq!(fs::read(&library).expect("read"), b"newer library");
    let old = std::io::read_to_string(&mut mapped).expect("read the old one");
    assert_eq!(old, "library");
}

#[test]
fn refuses_what_does_not_fit() {
    let refusal = |place: &Place| {
        let why = place.install(&[]).expect_err("refused");
        assert_eq!(place.installed(), [], "{why}");
        why
    };
    let why = refusal(&Place::new("17.2", X86_64));
    assert!(why.contains("for PostgreSQL 16, and "), "{why}");
    assert!(why.contains("belongs to PostgreSQL 17"), "{why}");
    let why = refusal(&Place::new("16.4", AARCH64));
    assert!(why.contains("for x86_64, and the server of "), "{why}");
    assert!(why.contains(" is aarch64"), "{why}");
    let why = refusal(&Place::new("", X86_64));
    assert!(why.contains("no pg_config"), "{why}");

    let incomplete = Place::new("16.4", X86_64);
    fs::remove_file(incomplete.path("package/litmus_pgnats--1.2.3.sql")).expect("remove");
    assert!(refusal(&incomplete).contains("has no litmus_pgnats--1.2.3.sql"));
}
