//! src/ is in layers: a file imports only what the table in docs/design.md allows its folder, and no files import each
//! other in a circle. Folders stay small, a name means one type. Reads sources as text; needs no server.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// The path of a module from the crate's root: `["actors", "outbox"]` is src/actors/outbox/mod.rs.
type Module = Vec<String>;

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("read {}: {error}", path.display()))
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).into()
}

/// Every module of src/ but for tests, with its code.
fn modules() -> BTreeMap<Module, String> {
    let (src, mut found) = (root().join("src"), BTreeMap::new());
    let mut folders = vec![src.clone()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("a folder of src") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let inside = path.strip_prefix(&src).expect("below src").with_extension("");
            let mut module: Module = inside
                .iter()
                .map(|part| part.to_str().expect("a name").into())
                .collect();
            module.pop_if(|last| matches!(last.as_str(), "mod" | "lib"));
            if module.last().is_none_or(|last| last != "tests") {
                found.insert(module, code(&read(&path)));
            }
        }
    }
    found
}

/// A file without its comments and its tests, which stand at its end.
fn code(text: &str) -> String {
    let (text, _) = text.split_once("#[cfg(test)]\nmod tests").unwrap_or((text, ""));
    let lines = text
        .lines()
        .map(|line| line.split_once("//").map_or(line, |(code, _)| code));
    lines.collect::<Vec<_>>().join("\n")
}

/// The paths from the crate's root that a module names, in `use` and elsewhere.
fn named_paths(module: &Module, code: &str) -> BTreeSet<Vec<String>> {
    let mut paths = BTreeSet::new();
    for start in ["crate", "super"] {
        for (at, _) in code.match_indices(&format!("{start}::")) {
            let is_name = |c: char| c.is_alphanumeric() || c == '_';
            let before = &code[..at];
            // `pub(crate)`, `super` behind another `super`, and names that end so.
            if before.ends_with(is_name) || before.ends_with("super::") {
                continue;
            }
            let (mut base, mut rest) = (Vec::new(), &code[at..]);
            if start == "super" {
                base.clone_from(module);
                while let Some(behind) = rest.strip_prefix("super::") {
                    base.pop();
                    rest = behind;
                }
            } else {
                rest = &rest["crate::".len()..];
            }
            expand(&base, rest, &mut paths);
        }
    }
    paths
}

/// Adds the paths of a `use` tree, or one path.
fn expand(base: &[String], tree: &str, paths: &mut BTreeSet<Vec<String>>) {
    let mut base = base.to_vec();
    let mut rest = tree;
    loop {
        if let Some(list) = rest.strip_prefix('{') {
            for part in branches(list) {
                expand(&base, part.trim(), paths);
            }
            return;
        }
        let end = rest
            .find(|c: char| !c.is_alphanumeric() && c != '_')
            .unwrap_or(rest.len());
        let (name, behind) = rest.split_at(end);
        if !name.is_empty() && name != "self" {
            base.push(name.into());
        }
        match behind.strip_prefix("::") {
            Some(behind) => rest = behind,
            None => break,
        }
    }
    paths.insert(base);
}

/// What stands between the commas of a list, up to the brace that ends it.
fn branches(list: &str) -> Vec<&str> {
    let (mut depth, mut start, mut found) = (0, 0, Vec::new());
    for (at, c) in list.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => {
                found.push(&list[start..at]);
                break;
            }
            '}' => depth -= 1,
            ',' if depth == 0 => {
                found.push(&list[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    found.retain(|part| !part.trim().is_empty());
    found
}

/// The module that a path leads into; a name that a module hands on from its child leads to the child.
fn target(path: &[String], modules: &BTreeMap<Module, String>) -> Option<Module> {
    let length = (0..=path.len())
        .rev()
        .find(|length| modules.contains_key(&path[..*length]))?;
    let (module, rest) = path.split_at(length);
    let handed_on = rest.first().and_then(|name| {
        let lines = modules[module].lines();
        let reexport = lines.filter_map(|line| line.trim().strip_prefix("pub use "));
        let child = reexport.filter_map(|line| line.trim_end_matches(';').split_once("::"));
        let mut of_name = child.filter(|(_, names)| {
            names
                .split(|c: char| !c.is_alphanumeric() && c != '_')
                .any(|known| known == name)
        });
        of_name
            .next()
            .map(|(child, _)| [module, &[child.to_string()]].concat())
    });
    Some(
        handed_on
            .filter(|child| modules.contains_key(child))
            .unwrap_or_else(|| module.to_vec()),
    )
}

/// What each module imports, others than itself, its parents and its children.
fn imports(modules: &BTreeMap<Module, String>) -> BTreeMap<&Module, BTreeSet<Module>> {
    let of = |(module, code): (&Module, &String)| -> BTreeSet<Module> {
        let paths = named_paths(module, code);
        let targets = paths.iter().filter_map(|path| target(path, modules));
        targets
            .filter(|target| !target.starts_with(module) && !module.starts_with(target))
            .collect()
    };
    modules.iter().map(|entry| (entry.0, of(entry))).collect()
}

/// A row of the table: a folder or file of src/, and what may be imported there.
struct Layer {
    row: usize,
    module: Module,
    may_import: Vec<Module>,
}

fn layers() -> Vec<Layer> {
    let design = read(&root().join("docs/design.md"));
    let rows = design.lines().filter(|line| line.starts_with("| `src/"));
    let paths = |cell: &str| -> Vec<Module> {
        let quoted = cell.split('`').skip(1).step_by(2);
        let module = |path: &str| {
            path.trim_start_matches("src/")
                .trim_end_matches(".rs")
                .split('/')
                .map(Into::into)
                .collect()
        };
        quoted.map(module).collect()
    };
    let layer = |(number, row): (usize, &str)| {
        let cells: Vec<&str> = row.trim_matches('|').split('|').collect();
        assert_eq!(cells.len(), 4, "folder, owns, runs in, may import: {row}");
        let may_import = paths(cells[3]);
        let layer = |module| Layer {
            row: number,
            module,
            may_import: may_import.clone(),
        };
        paths(cells[0]).into_iter().map(layer).collect::<Vec<_>>()
    };
    rows.enumerate().flat_map(layer).collect()
}

/// The row that a module belongs to: the one with the longest name.
fn layer<'a>(module: &Module, layers: &'a [Layer]) -> &'a Layer {
    let own = layers.iter().filter(|layer| module.starts_with(&layer.module));
    let own = own.max_by_key(|layer| layer.module.len());
    own.unwrap_or_else(|| {
        panic!(
            "src/{} has no row in the table of docs/design.md",
            module.join("/")
        )
    })
}

/// Neither more nor less, so that the table says how things are.
#[test]
fn imports_are_those_of_the_table() {
    let (modules, layers) = (modules(), layers());
    let (mut wrong, mut used) = (Vec::new(), BTreeSet::new());
    for (module, targets) in imports(&modules) {
        // lib.rs wires everything; a folder of folders has no row.
        if module.is_empty() || targets.is_empty() {
            continue;
        }
        let own = layer(module, &layers);
        for target in targets {
            let other = layer(&target, &layers);
            used.insert((own.row, other.module.clone()));
            if own.row != other.row && !own.may_import.contains(&other.module) {
                wrong.push(format!(
                    "src/{} imports src/{}",
                    module.join("/"),
                    target.join("/")
                ));
            }
        }
    }
    for layer in &layers {
        for module in &layer.may_import {
            if !used.contains(&(layer.row, module.clone())) {
                wrong.push(format!(
                    "nothing in the row of src/{} imports src/{}",
                    layer.module.join("/"),
                    module.join("/")
                ));
            }
        }
    }
    let wrong = wrong.join("\n");
    assert!(
        wrong.is_empty(),
        "not as in the table of docs/design.md:\n{wrong}"
    );
}

/// A row may allow what stands below it alone, so that the layers have no circle either.
#[test]
fn the_table_goes_downwards() {
    let layers = layers();
    for (n, layer) in layers.iter().enumerate() {
        for module in &layer.may_import {
            let below = layers[n + 1..].iter().any(|other| other.module == *module);
            assert!(
                below,
                "{} may import {}, which has no row below it",
                layer.module.join("/"),
                module.join("/")
            );
        }
    }
}

#[test]
fn no_files_import_each_other_in_a_circle() {
    let modules = modules();
    let mut left = imports(&modules);
    loop {
        let names: BTreeSet<&Module> = left.keys().copied().collect();
        let imported: BTreeSet<Module> = left.values().flatten().cloned().collect();
        let before = left.len();
        left.retain(|module, targets| {
            imported.contains(*module) && targets.iter().any(|target| names.contains(target))
        });
        if left.len() == before {
            break;
        }
    }
    let circle = left.iter().map(|(module, targets)| {
        let targets = targets
            .iter()
            .filter(|target| left.contains_key(target))
            .map(|target| target.join("/"));
        format!(
            "src/{} imports {}",
            module.join("/"),
            targets.collect::<Vec<_>>().join(", ")
        )
    });
    let circle: Vec<String> = circle.collect();
    assert!(
        circle.is_empty(),
        "these have a circle among them:\n{}",
        circle.join("\n")
    );
}

/// What a change of src/ must not slip past: each way of naming a module is understood.
#[test]
fn every_way_to_name_a_module_is_found() {
    let module: Module = ["a", "b"].map(Into::into).into();
    let code = "use crate::x::{self, y::{Z, self}, w};\nuse super::c::D;\nfn f() { super::super::e::g($crate::h::i()) }";
    let found: Vec<String> = named_paths(&module, code)
        .iter()
        .map(|path| path.join("::"))
        .collect();
    assert_eq!(found, ["a::c::D", "e::g", "h::i", "x", "x::w", "x::y", "x::y::Z"]);
}

/// A folder of src/actors is taken in at a glance: a dozen files, and a `mod.rs` that is a map of them.
#[test]
fn folders_of_actors_are_small() {
    let modules = modules();
    let mut files: BTreeMap<&[String], usize> = BTreeMap::new();
    for module in modules.keys().filter(|module| module.len() == 3) {
        *files.entry(&module[..2]).or_insert(1) += 1;
    }
    files.retain(|folder, _| folder[0] == "actors");
    assert!(files.len() > 8, "{files:?}");
    for (folder, count) in files {
        let lines = modules[folder].lines().count();
        let name = folder.join("/");
        assert!(count <= 12, "src/{name} has {count} files");
        let is_folder = root().join("src").join(&name).join("mod.rs").exists();
        assert!(!is_folder || lines < 60, "src/{name}/mod.rs has {lines} lines");
    }
}

/// One word for one thing: no two types of src/ have one name.
#[test]
fn a_name_means_one_type() {
    let mut places: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (module, code) in modules() {
        // A type that depends on PostgreSQL's version has two definitions in its file.
        for name in type_names(&code).into_iter().collect::<BTreeSet<_>>() {
            places.entry(name).or_default().push(module.join("/"));
        }
    }
    places.retain(|_, files| files.len() > 1);
    assert!(places.is_empty(), "{places:?}");
}

/// The types that a file defines outside of other items; a method's or a trait's own are indented.
fn type_names(code: &str) -> Vec<String> {
    let lines = code.lines().map(|line| line.trim_start_matches("pub "));
    let lines = lines.map(|line| {
        line.trim_start_matches("pub(super) ")
            .trim_start_matches("pub(crate) ")
    });
    let keywords = ["struct ", "enum ", "trait ", "type ", "union "];
    let behind = lines.filter_map(|line| keywords.iter().find_map(|keyword| line.strip_prefix(keyword)));
    let names = behind.map(|rest| rest.split(|c: char| !c.is_alphanumeric()).next());
    names.flatten().map(Into::into).collect()
}
