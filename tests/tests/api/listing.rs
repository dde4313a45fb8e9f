//! The listing of the public API, `docs/api/capsa.txt`, compared with the sources.
//!
//! It is made from the sources with `syn`, so it needs no nightly compiler: all public items that the
//! crate `capsa` defines or re-exports, with fields, variants, methods and implemented traits. `{async}`
//! is the feature that an item needs. `CAPSA_BLESS=1 cargo test -p capsa-test --test api` rewrites it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use capsa_testkit::workspace;
use quote::ToTokens;
use syn::{Fields, Item, UseTree, Visibility};

const LISTING: &str = "docs/api/capsa.txt";
/// The crates whose items `capsa` re-exports.
const CRATES: [&str; 4] = ["capsa", "capsa-proto", "capsa-io", "capsa-net"];

/// A module: its items, and where its children are.
#[derive(Clone)]
struct SourceModule {
    package: &'static str,
    file: PathBuf,
    children: PathBuf,
    items: Vec<Item>,
}

impl SourceModule {
    fn of_file(package: &'static str, file: &Path) -> Self {
        let text = fs::read_to_string(file).unwrap();
        let items = syn::parse_file(&text).unwrap().items;
        let children = match file.file_stem().unwrap().to_str().unwrap() {
            "lib" | "mod" => file.parent().unwrap().to_owned(),
            stem => file.parent().unwrap().join(stem),
        };
        Self { package, file: file.to_owned(), children, items }
    }

    fn root(package: &'static str) -> Self {
        Self::of_file(package, &workspace::root().join(package).join("src/lib.rs"))
    }

    fn child(&self, name: &str) -> Option<Self> {
        let module = self.items.iter().find_map(|item| match item {
            Item::Mod(module) if module.ident == name => Some(module),
            _ => None,
        })?;
        if let Some((_, items)) = &module.content {
            let children = self.children.join(name);
            return Some(Self { children, items: items.clone(), ..self.clone() });
        }
        let files = [format!("{name}.rs"), format!("{name}/mod.rs")];
        let file = files.iter().map(|file| self.children.join(file)).find(|file| file.exists())?;
        Some(Self::of_file(self.package, &file))
    }

    /// The module and the item behind a path that is used in this module.
    fn resolve(&self, path: &[String]) -> Option<(Self, Item)> {
        let (first, rest) = path.split_first()?;
        let package = CRATES.into_iter().find(|package| package.replace('-', "_") == *first);
        match first.as_str() {
            "crate" => Self::root(self.package).resolve(rest),
            "self" => self.resolve(rest),
            _ if package.is_some() => Self::root(package?).resolve(rest),
            _ if !rest.is_empty() => self.child(first)?.resolve(rest),
            name => self.item(name),
        }
    }

    fn item(&self, name: &str) -> Option<(Self, Item)> {
        for item in &self.items {
            if let Item::Use(used) = item {
                for (path, leaf) in leaves(&used.tree) {
                    if leaf == name
                        && let Some(found) = self.resolve(&path)
                    {
                        return Some(found);
                    }
                }
            } else if ident(item).is_some_and(|ident| ident == name) {
                return Some((self.clone(), item.clone()));
            }
        }
        None
    }
}

/// Each path of a `use`, with the name that it gets.
fn leaves(tree: &UseTree) -> Vec<(Vec<String>, String)> {
    match tree {
        UseTree::Path(path) => {
            let mut found = leaves(&path.tree);
            found.iter_mut().for_each(|(whole, _)| whole.insert(0, path.ident.to_string()));
            found
        }
        UseTree::Name(name) => vec![(vec![name.ident.to_string()], name.ident.to_string())],
        UseTree::Rename(name) => vec![(vec![name.ident.to_string()], name.rename.to_string())],
        UseTree::Group(group) => group.items.iter().flat_map(leaves).collect(),
        UseTree::Glob(_) => Vec::new(),
    }
}

fn ident(item: &Item) -> Option<String> {
    Some(match item {
        Item::Struct(item) => item.ident.to_string(),
        Item::Enum(item) => item.ident.to_string(),
        Item::Trait(item) => item.ident.to_string(),
        Item::Type(item) => item.ident.to_string(),
        Item::Const(item) => item.ident.to_string(),
        Item::Fn(item) => item.sig.ident.to_string(),
        _ => return None,
    })
}

/// Tokens as text on one line.
fn text(tokens: &impl ToTokens) -> String {
    let mut text = tokens.to_token_stream().to_string().replace('\n', " ");
    for (from, to) in [
        (" :: ", "::"),
        (":: ", "::"),
        (" (", "("),
        ("( ", "("),
        (" )", ")"),
        (" ,", ","),
        ("& ", "&"),
        (" < ", "<"),
        ("< ", "<"),
        (" >", ">"),
        (" :", ":"),
        (" ;", ";"),
        ("# [", "#["),
        ("[ ", "["),
        (" ]", "]"),
        (" <", "<"),
        (",)", ")"),
        ("->(", "-> ("),
        (" !", "!"),
    ] {
        text = text.replace(from, to);
    }
    text.replace("->", " -> ").replace("  ->", " ->").replace("->  ", "-> ").replace(" -> >", " ->")
}

fn is_public(visibility: &Visibility) -> bool {
    matches!(visibility, Visibility::Public(_))
}

fn has(attributes: &[syn::Attribute], what: &str) -> bool {
    attributes.iter().any(|attribute| text(attribute).contains(what))
}

/// The feature that an item needs: `{async} `.
fn feature(attributes: &[syn::Attribute]) -> String {
    let cfg = attributes.iter().map(text).find(|text| text.starts_with("#[cfg("));
    let names = cfg.map(|cfg| cfg.split('"').skip(1).step_by(2).collect::<Vec<_>>().join("+"));
    names.filter(|names| !names.is_empty()).map(|names| format!("{{{names}}} ")).unwrap_or_default()
}

fn sealed(attributes: &[syn::Attribute]) -> &'static str {
    if has(attributes, "non_exhaustive") { "#[non_exhaustive] " } else { "" }
}

struct Listing {
    lines: Vec<String>,
    /// All `impl` blocks of the crates, with the file.
    impls: Vec<(PathBuf, syn::ItemImpl)>,
}

impl Listing {
    fn module(&mut self, path: &str, module: &SourceModule) {
        for item in module.items.clone() {
            match &item {
                Item::Mod(child) if is_public(&child.vis) && !has(&child.attrs, "hidden") => {
                    let name = format!("{path}::{}", child.ident);
                    self.lines.push(format!("{}mod {name}", feature(&child.attrs)));
                    self.module(&name, &module.child(&child.ident.to_string()).unwrap());
                }
                Item::Use(used) if is_public(&used.vis) => {
                    for (target, name) in leaves(&used.tree) {
                        let (of, item) = module.resolve(&target).unwrap_or_else(|| {
                            panic!("{}: {} is not found", module.file.display(), target.join("::"))
                        });
                        self.item(&format!("{path}::{name}"), &feature(&used.attrs), &of, &item);
                    }
                }
                _ => self.item_if_public(path, module, &item),
            }
        }
    }

    fn item_if_public(&mut self, path: &str, module: &SourceModule, item: &Item) {
        let (visibility, attributes) = match item {
            Item::Struct(item) => (&item.vis, &item.attrs),
            Item::Enum(item) => (&item.vis, &item.attrs),
            Item::Trait(item) => (&item.vis, &item.attrs),
            Item::Type(item) => (&item.vis, &item.attrs),
            Item::Const(item) => (&item.vis, &item.attrs),
            Item::Fn(item) => (&item.vis, &item.attrs),
            _ => return,
        };
        if is_public(visibility) {
            let path = format!("{path}::{}", ident(item).unwrap());
            self.item(&path, &feature(attributes), module, item);
        }
    }

    fn item(&mut self, path: &str, feature: &str, module: &SourceModule, item: &Item) {
        let mut members = Vec::new();
        let (head, derives) = match item {
            Item::Struct(item) => {
                fields(&item.fields, true, &mut members);
                let generics = text(&item.generics);
                (format!("{}struct {path}{generics}", sealed(&item.attrs)), &item.attrs[..])
            }
            Item::Enum(item) => {
                for variant in &item.variants {
                    let mut inner = Vec::new();
                    fields(&variant.fields, false, &mut inner);
                    let seal = sealed(&variant.attrs);
                    let inner = match &variant.fields {
                        Fields::Named(_) => format!(" {{ {} }}", inner.join(", ")),
                        Fields::Unnamed(_) => format!("({})", inner.join(", ")),
                        Fields::Unit => String::new(),
                    };
                    members.push(format!("{seal}{}{inner}", variant.ident));
                }
                (format!("{}enum {path}", sealed(&item.attrs)), &item.attrs[..])
            }
            Item::Trait(item) => {
                members.extend(item.items.iter().filter_map(|member| match member {
                    syn::TraitItem::Fn(method) => Some(text(&method.sig)),
                    syn::TraitItem::Type(associated) => Some(format!("type {}", associated.ident)),
                    _ => None,
                }));
                (format!("trait {path}"), &[][..])
            }
            Item::Type(item) => (format!("type {path} = {}", text(&item.ty)), &[][..]),
            Item::Const(item) => (format!("const {path}: {}", text(&item.ty)), &[][..]),
            Item::Fn(item) => {
                let signature = text(&item.sig);
                let name = format!("fn {}", item.sig.ident);
                (signature.replacen(&name, &format!("fn {path}"), 1), &[][..])
            }
            _ => return,
        };
        self.lines.push(format!("{feature}{head}"));
        if matches!(item, Item::Struct(_) | Item::Enum(_)) {
            self.members(&ident(item).unwrap(), module, derives, &mut members);
        }
        self.lines.extend(members.into_iter().map(|member| format!("    {member}")));
    }

    /// The public methods, and the traits that a type implements.
    fn members(
        &self,
        name: &str,
        module: &SourceModule,
        derives: &[syn::Attribute],
        members: &mut Vec<String>,
    ) {
        let mut traits = BTreeSet::new();
        for derive in derives.iter().map(text).filter(|text| text.starts_with("#[derive(")) {
            let list = derive.trim_start_matches("#[derive(").trim_end_matches(")]");
            traits
                .extend(list.split(", ").map(|name| name.rsplit("::").next().unwrap().to_owned()));
        }
        for (file, block) in &self.impls {
            let of = text(&*block.self_ty);
            // The async and the blocking API have types of the same names.
            let is_same_api = is_blocking(file) == is_blocking(&module.file);
            let sources = workspace::root().join(module.package).join("src");
            let is_same_type = of.split('<').next() == Some(name) && file.starts_with(sources);
            if !is_same_type || !is_same_api {
                continue;
            }
            if let Some((implemented, _)) = &block.trait_ {
                traits.insert(format!("{}{}", feature(&block.attrs), text(implemented)));
                continue;
            }
            for member in &block.items {
                match member {
                    syn::ImplItem::Fn(method)
                        if is_public(&method.vis) && !has(&method.attrs, "hidden") =>
                    {
                        let feature = feature(&method.attrs);
                        members.push(format!("{feature}{}", text(&method.sig)));
                    }
                    syn::ImplItem::Const(item) if is_public(&item.vis) => {
                        members.push(format!("const {}: {}", item.ident, text(&item.ty)));
                    }
                    _ => {}
                }
            }
        }
        let traits: Vec<_> = traits.into_iter().collect();
        members.push(format!("impl {}", traits.join(", ")));
    }
}

fn is_blocking(file: &Path) -> bool {
    let capsa = workspace::root().join("capsa/src");
    file.ends_with("blocking.rs") || file.starts_with(capsa.join("blocking"))
}

fn fields(fields: &Fields, needs_pub: bool, into: &mut Vec<String>) {
    for field in fields.iter().filter(|field| !needs_pub || is_public(&field.vis)) {
        let name = field.ident.as_ref().map(|name| format!("{name}: ")).unwrap_or_default();
        into.push(format!("{name}{}", text(&field.ty)));
    }
}

fn collect_impls(dir: &Path, into: &mut Vec<(PathBuf, syn::ItemImpl)>) {
    fn of_items(file: &Path, items: Vec<Item>, into: &mut Vec<(PathBuf, syn::ItemImpl)>) {
        for item in items {
            match item {
                Item::Impl(block) => into.push((file.to_owned(), block)),
                Item::Mod(module) if !has(&module.attrs, "cfg(test)") => {
                    of_items(
                        file,
                        module.content.map(|(_, items)| items).unwrap_or_default(),
                        into,
                    );
                }
                _ => {}
            }
        }
    }
    let mut paths: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    for path in paths {
        if path.is_dir() {
            collect_impls(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs")
            && !path.ends_with("tests.rs")
            && !path.ends_with("internal.rs")
        {
            of_items(
                &path,
                syn::parse_file(&fs::read_to_string(&path).unwrap()).unwrap().items,
                into,
            );
        }
    }
}

fn listing() -> Vec<String> {
    let mut impls = Vec::new();
    for package in CRATES {
        collect_impls(&workspace::root().join(package).join("src"), &mut impls);
    }
    let mut listing = Listing { lines: Vec::new(), impls };
    listing.module("capsa", &SourceModule::root("capsa"));
    listing.lines
}

#[test]
fn public_api_matches_listing() {
    let now = listing().join("\n") + "\n";
    let path = workspace::root().join(LISTING);
    if std::env::var_os("CAPSA_BLESS").is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, &now).unwrap();
    }
    let before = fs::read_to_string(&path).unwrap_or_default();
    let gone = before.lines().filter(|line| !now.lines().any(|other| other == *line));
    let new = now.lines().filter(|line| !before.lines().any(|other| other == *line));
    let changes: Vec<_> =
        gone.map(|line| format!("- {line}")).chain(new.map(|line| format!("+ {line}"))).collect();
    assert!(
        before == now,
        "{LISTING} is not the public API. If the change is intended, set CAPSA_BLESS=1 and describe it \
         in CHANGELOG.md:\n{}",
        changes.join("\n")
    );
}

/// The types that stay exhaustive although they are public, with all their fields or variants.
const EXHAUSTIVE: [(&str, &[&str]); 3] = [
    // The protocol with the agent: both ends know all of it, and a change of it is a new version.
    (
        "protocol",
        &[
            "CommandSpec",
            "MountSpec",
            "Operation",
            "OperationEnd",
            "OutputStream",
            "PowerAction",
            "TerminalSize",
            "WriteMode",
        ],
    ),
    // The specification builds them by literal, or matches them without a wildcard.
    (
        "specification",
        &[
            "CmdlineArg",
            "ConsoleMode",
            "DiskImage",
            "ImageFormat",
            "LinuxDirectBootConfig",
            "MountMode",
            "ResourceConfig",
            "ShareMechanism",
            "SharedDir",
            "Virtio9pConfig",
            "VirtioFsConfig",
            "VmStatus",
        ],
    ),
    // There is no other level of a note, request for a pause, side of a socket, transport, or part of a version.
    (
        "complete",
        &[
            "NoteLevel",
            "PauseRequest",
            "PolicyProtocol",
            "TransportProtocol",
            "Version",
            "VsockDirection",
        ],
    ),
];

/// Clippy's exhaustive lints check the types that `capsa` defines. They cannot check those of the other
/// crates, of which `capsa` re-exports only some.
#[test]
fn public_types_can_grow() {
    let lines = listing();
    let mut found = BTreeSet::new();
    for (at, line) in lines.iter().enumerate() {
        let mut words = line.split(' ').filter(|word| !word.starts_with('{'));
        let kind = words.next().unwrap_or_default();
        let name = words.next().unwrap_or_default().rsplit("::").next().unwrap_or_default();
        // A field, not a method. A struct without public fields cannot be built or matched.
        let has_field = lines.get(at + 1).is_some_and(|member| {
            member.starts_with("    ") && !member.contains("fn ") && !member.contains("impl ")
        });
        if kind == "enum" || kind == "struct" && has_field {
            found.insert(name);
        }
    }
    let allowed: BTreeSet<_> = EXHAUSTIVE.iter().flat_map(|(_, names)| *names).copied().collect();
    assert_eq!(found, allowed, "mark the type `#[non_exhaustive]`, or add it to EXHAUSTIVE");
}

#[test]
fn root_has_at_most_30_names() {
    let is_in_root = |line: &&String| {
        let path = line.split_whitespace().find(|word| word.starts_with("capsa::"));
        !line.starts_with(' ')
            && !line.contains("mod ")
            && path.is_some_and(|path| path.matches("::").count() == 1)
    };
    let listing = listing();
    let names: Vec<_> = listing.iter().filter(is_in_root).collect();
    assert!(names.len() <= 30, "{} names: {names:#?}", names.len());
}
