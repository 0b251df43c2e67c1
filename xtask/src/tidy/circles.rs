//! Circles of imports among the modules of a crate.
//!
//! A module is a source file, with the modules that are written inside it. It imports another one when
//! it names something of it by a path, in a `use` or in its code, calls of macros included. A name that
//! a module re-exports counts for the module that it comes from; a glob is not looked through. Not
//! counted are a parent and its child, the crate root, and what is compiled for tests alone, models among
//! it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use proc_macro2::{TokenStream, TokenTree};
use syn::parse::{Parse, ParseStream};
use syn::punctuated::Punctuated;
use syn::visit::{self, Visit};
use syn::{Attribute, Item, Meta, Token, UseTree, Visibility, token};

use crate::tree;

/// A path from the crate root: of a module, or of something in it. The root's is empty.
type Names = Vec<String>;

/// For each module those that it imports, and for each of these a name that it takes from there.
type Imports = BTreeMap<Names, BTreeMap<Names, Names>>;

/// Every circle in the crate whose sources are in `root/src`, a line for each of its modules.
pub(super) fn find(root: &Path, src: &Path) -> io::Result<Vec<String>> {
    let dir = root.join(src);
    let files = tree::files(&dir, "rs")?;
    let read = |file: PathBuf| fs::read_to_string(dir.join(&file)).map(|text| (file, text));
    let files: Vec<_> = files.into_iter().map(read).collect::<io::Result<_>>()?;
    let package = Package::new(files.iter().map(|(file, text)| (file.as_path(), text.as_str())));
    let circles = package.circles();
    Ok(circles.iter().map(|circle| package.describe(circle, src)).collect())
}

/// The modules of a crate.
#[derive(Debug, Default)]
struct Package {
    files: BTreeMap<Names, PathBuf>,
    /// By their paths, with those that are written inside a file.
    modules: BTreeMap<Names, Module>,
    only_in_tests: BTreeSet<Names>,
}

/// What is written in a module.
#[derive(Debug, Default)]
struct Module {
    uses: Vec<Use>,
    /// The paths outside a `use`, of two names and more.
    paths: Vec<Names>,
}

/// One name that a `use` brings in.
#[derive(Debug)]
struct Use {
    is_public: bool,
    /// The name here; `*` when it is all that there is.
    name: String,
    path: Names,
}

impl Package {
    fn new<'f>(files: impl IntoIterator<Item = (&'f Path, &'f str)>) -> Self {
        let mut package = Self::default();
        for (file, text) in files {
            let parsed = syn::parse_file(text);
            let parsed = parsed.unwrap_or_else(|error| panic!("{}: {error}", file.display()));
            let path = module_of(file);
            package.files.insert(path.clone(), file.to_owned());
            package.modules.entry(path.clone()).or_default();
            Reader { place: path, package: &mut package }.visit_file(&parsed);
        }
        package
    }

    /// The groups of modules of which each imports, by way of others, each.
    fn circles(&self) -> Vec<Imports> {
        let imports = self.imports();
        let reached: BTreeMap<_, _> =
            imports.keys().map(|from| (from, reached(&imports, from))).collect();
        let mut circles = Vec::new();
        let mut seen = BTreeSet::new();
        for (from, to) in &reached {
            if !to.contains(*from) || seen.contains(*from) {
                continue;
            }
            let members: BTreeSet<_> =
                to.iter().copied().filter(|to| reached[to].contains(*from)).collect();
            seen.extend(members.iter().copied());
            let inside = |module: &&Names| {
                let mut named = imports[*module].clone();
                named.retain(|to, _| members.contains(to));
                ((*module).clone(), named)
            };
            circles.push(members.iter().map(inside).collect());
        }
        circles
    }

    fn imports(&self) -> Imports {
        let mut imports: Imports =
            self.files.keys().map(|file| (file.clone(), BTreeMap::new())).collect();
        for (place, module) in &self.modules {
            let from = self.file_of(place);
            let named = module.uses.iter().filter_map(|u| self.absolute(&u.path, place));
            let in_code = module.paths.iter().filter_map(|path| self.in_scope(path, place));
            for name in named.chain(in_code) {
                let mut origins = BTreeSet::new();
                self.add_origins(&name, &mut BTreeSet::new(), &mut origins);
                origins.retain(|to| {
                    let is_family = from.starts_with(to) || to.starts_with(&from);
                    !is_family && !self.is_for_tests(&from) && !self.is_for_tests(to)
                });
                let of_file = imports.get_mut(&from).expect("every file has an entry");
                for to in origins {
                    of_file.entry(to).or_insert_with(|| name.clone());
                }
            }
        }
        imports
    }

    /// From the root, a path that is written in the module `place`. `None`: another crate's.
    fn absolute(&self, path: &[String], place: &[String]) -> Option<Names> {
        let (first, rest) = path.split_first()?;
        let absolute = match first.as_str() {
            "crate" => rest.to_vec(),
            "self" => [place, rest].concat(),
            "super" => {
                let mut base = place.len().checked_sub(1)?;
                let mut rest = rest;
                while let Some((_, more)) = rest.split_first().filter(|(name, _)| *name == "super")
                {
                    (base, rest) = (base.checked_sub(1)?, more);
                }
                [&place[..base], rest].concat()
            }
            child => {
                let is_module = self.modules.contains_key(&[place, &[child.to_owned()]].concat());
                is_module.then(|| [place, path].concat())?
            }
        };
        Some(absolute)
    }

    /// The same for a path in code, which may begin with a name that a `use` has brought in.
    fn in_scope(&self, path: &[String], place: &[String]) -> Option<Names> {
        let (first, rest) = path.split_first()?;
        self.absolute(path, place).or_else(|| {
            let used = self.modules[place].uses.iter().find(|used| used.name == *first)?;
            Some([self.absolute(&used.path, place)?, rest.to_vec()].concat())
        })
    }

    /// Adds the files that something comes from: re-exports are followed. They are several where each
    /// architecture has it.
    fn add_origins(
        &self,
        name: &[String],
        seen: &mut BTreeSet<Names>,
        files: &mut BTreeSet<Names>,
    ) {
        // Two modules may re-export each other.
        if !seen.insert(name.to_vec()) {
            return;
        }
        let mut prefixes = (0..=name.len()).rev().map(|n| &name[..n]);
        let place = prefixes.find(|prefix| self.modules.contains_key(*prefix)).unwrap_or_default();
        let mut is_handed_on = false;
        if let Some((next, rest)) = name[place.len()..].split_first()
            && let Some(module) = self.modules.get(place)
        {
            for used in module.uses.iter().filter(|used| used.is_public && used.name == *next) {
                if let Some(path) = self.absolute(&used.path, place) {
                    is_handed_on = true;
                    self.add_origins(&[path.as_slice(), rest].concat(), seen, files);
                }
            }
        }
        if !is_handed_on {
            files.insert(self.file_of(name));
        }
    }

    /// The file that a module, or something in one, is in.
    fn file_of(&self, path: &[String]) -> Names {
        let mut prefixes = (0..=path.len()).rev().map(|n| &path[..n]);
        let file = prefixes.find(|prefix| self.files.contains_key(*prefix));
        file.unwrap_or_default().to_vec()
    }

    fn is_for_tests(&self, file: &[String]) -> bool {
        (1..=file.len()).any(|n| self.only_in_tests.contains(&file[..n]))
    }

    /// `src/a.rs imports src/b.rs (b::X), src/c.rs (c::Y)`, a line for each module.
    fn describe(&self, circle: &Imports, src: &Path) -> String {
        let file = |module: &Names| src.join(&self.files[module]).display().to_string();
        let mut lines = Vec::new();
        for (from, imports) in circle {
            let imports: Vec<_> = imports
                .iter()
                .map(|(to, name)| format!("{} ({})", file(to), name.join("::")))
                .collect();
            lines.push(format!("{} imports {}", file(from), imports.join(", ")));
        }
        lines.join("\n    ")
    }
}

/// All that a module imports, and all that these import.
fn reached<'i>(imports: &'i Imports, from: &Names) -> BTreeSet<&'i Names> {
    let mut reached = BTreeSet::new();
    let mut next: Vec<_> = imports[from].keys().collect();
    while let Some(module) = next.pop() {
        if reached.insert(module) {
            next.extend(imports[module].keys());
        }
    }
    reached
}

/// The module that a file is.
fn module_of(file: &Path) -> Names {
    let path = file.with_extension("");
    let mut names: Names = path.iter().map(|n| n.to_string_lossy().into_owned()).collect();
    let is_root = names.len() == 1 && matches!(names[0].as_str(), "lib" | "main");
    if is_root || names.last().is_some_and(|name| name == "mod") {
        names.pop();
    }
    names
}

/// Reads a file into its module.
struct Reader<'p> {
    /// The module that is being read.
    place: Names,
    package: &'p mut Package,
}

impl Reader<'_> {
    fn module(&mut self) -> &mut Module {
        self.package.modules.entry(self.place.clone()).or_default()
    }

    fn add_path(&mut self, path: Names) {
        if path.len() > 1 {
            self.module().paths.push(path);
        }
    }

    /// Adds every name of a `use`.
    fn add_use(&mut self, tree: &UseTree, mut path: Names, visibility: &Visibility) {
        let name = match tree {
            UseTree::Path(tree) => {
                path.push(tree.ident.to_string());
                return self.add_use(&tree.tree, path, visibility);
            }
            UseTree::Group(group) => {
                for tree in &group.items {
                    self.add_use(tree, path.clone(), visibility);
                }
                return;
            }
            UseTree::Name(tree) => {
                path.push(tree.ident.to_string());
                None
            }
            UseTree::Rename(tree) => {
                path.push(tree.ident.to_string());
                Some(tree.rename.to_string())
            }
            UseTree::Glob(_) => Some("*".to_owned()),
        };
        // `a::{self, B}` names `a`.
        if path.len() > 1 && path.last().is_some_and(|name| name == "self") {
            path.pop();
        }
        let name = name.or_else(|| path.last().cloned()).unwrap_or_default();
        let is_public = !matches!(visibility, Visibility::Inherited);
        self.module().uses.push(Use { is_public, name, path });
    }

    /// Adds the paths in a macro's tokens, of which only the macro knows what else they are.
    fn add_tokens(&mut self, tokens: TokenStream) {
        let mut path = Names::new();
        let mut colons = 0;
        for token in tokens {
            match token {
                TokenTree::Punct(punct) if punct.as_char() == ':' => {
                    colons += 1;
                    continue;
                }
                TokenTree::Ident(name) if colons == 2 && !path.is_empty() => {
                    path.push(name.to_string());
                }
                TokenTree::Ident(name) => {
                    self.add_path(std::mem::replace(&mut path, vec![name.to_string()]));
                }
                TokenTree::Group(group) => {
                    self.add_path(std::mem::take(&mut path));
                    self.add_tokens(group.stream());
                }
                TokenTree::Punct(_) | TokenTree::Literal(_) => {
                    self.add_path(std::mem::take(&mut path));
                }
            }
            colons = 0;
        }
        self.add_path(path);
    }
}

/// Passes over what is compiled for tests alone.
macro_rules! outside_tests {
    ($($visit:ident $node:ident,)*) => {
        $(fn $visit(&mut self, node: &'a syn::$node) {
            if !is_for_tests(&node.attrs) {
                visit::$visit(self, node);
            }
        })*
    };
}

impl<'a> Visit<'a> for Reader<'_> {
    fn visit_file(&mut self, file: &'a syn::File) {
        if is_for_tests(&file.attrs) {
            self.package.only_in_tests.insert(self.place.clone());
        }
        visit::visit_file(self, file);
    }

    fn visit_item_mod(&mut self, module: &'a syn::ItemMod) {
        self.place.push(module.ident.to_string());
        if is_for_tests(&module.attrs) {
            self.package.only_in_tests.insert(self.place.clone());
        } else if module.content.is_some() {
            self.module();
            visit::visit_item_mod(self, module);
        }
        self.place.pop();
    }

    fn visit_item_use(&mut self, item: &'a syn::ItemUse) {
        if !is_for_tests(&item.attrs) {
            self.add_use(&item.tree, Names::new(), &item.vis);
        }
    }

    fn visit_path(&mut self, path: &'a syn::Path) {
        self.add_path(path.segments.iter().map(|segment| segment.ident.to_string()).collect());
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, call: &'a syn::Macro) {
        self.visit_path(&call.path);
        let is_choice = call.path.is_ident("cfg_select")
            || call.path.segments.last().is_some_and(|name| name.ident == "cfg_if");
        match call.parse_body::<Arms>() {
            Ok(Arms(arms)) if is_choice => {
                for (condition, items) in arms {
                    if !condition.is_some_and(|condition| implies_test(&condition)) {
                        for item in items {
                            // The items live no longer than this call.
                            Reader { place: self.place.clone(), package: self.package }
                                .visit_item(&item);
                        }
                    }
                }
            }
            _ => self.add_tokens(call.tokens.clone()),
        }
    }

    /// `pub(in crate::a)` imports nothing.
    fn visit_visibility(&mut self, _: &'a Visibility) {}

    fn visit_attribute(&mut self, _: &'a Attribute) {}

    outside_tests! {
        visit_item_const ItemConst,
        visit_item_enum ItemEnum,
        visit_item_fn ItemFn,
        visit_item_impl ItemImpl,
        visit_item_macro ItemMacro,
        visit_item_static ItemStatic,
        visit_item_struct ItemStruct,
        visit_item_trait ItemTrait,
        visit_item_type ItemType,
        visit_impl_item_const ImplItemConst,
        visit_impl_item_fn ImplItemFn,
        visit_trait_item_fn TraitItemFn,
        visit_field Field,
        visit_field_value FieldValue,
        visit_variant Variant,
        visit_arm Arm,
        visit_local Local,
        visit_expr_block ExprBlock,
        visit_expr_call ExprCall,
        visit_expr_method_call ExprMethodCall,
        visit_stmt_macro StmtMacro,
    }
}

/// The arms of `cfg_if!` or `cfg_select!`, each with its condition; none in the last.
struct Arms(Vec<(Option<Meta>, Vec<Item>)>);

impl Parse for Arms {
    fn parse(input: ParseStream<'_>) -> syn::Result<Self> {
        let mut arms = Vec::new();
        while !input.is_empty() {
            input.parse::<Option<Token![else]>>()?;
            let condition = if input.parse::<Option<Token![if]>>()?.is_some() {
                let attributes = input.call(Attribute::parse_outer)?;
                attributes.first().map(Attribute::parse_args).transpose()?
            } else if input.parse::<Option<Token![_]>>()?.is_some() || input.peek(token::Brace) {
                None
            } else {
                Some(input.parse()?)
            };
            input.parse::<Option<Token![=>]>>()?;
            let body;
            syn::braced!(body in input);
            let mut items = Vec::new();
            while !body.is_empty() {
                items.push(body.parse()?);
            }
            arms.push((condition, items));
        }
        Ok(Self(arms))
    }
}

/// Whether something with these attributes is compiled for tests alone.
fn is_for_tests(attributes: &[Attribute]) -> bool {
    let conditions = attributes.iter().filter(|attribute| attribute.path().is_ident("cfg"));
    conditions.flat_map(Attribute::parse_args::<Meta>).any(|condition| implies_test(&condition))
}

fn implies_test(condition: &Meta) -> bool {
    let Meta::List(list) = condition else { return condition.path().is_ident("test") };
    let parts = list.parse_args_with(Punctuated::<Meta, Token![,]>::parse_terminated);
    parts.is_ok_and(|parts| {
        (list.path.is_ident("all") && parts.iter().any(implies_test))
            || (list.path.is_ident("any") && parts.iter().all(implies_test))
    })
}

/// The circles of a crate with these files, each as the names of its modules.
#[track_caller]
fn circles(files: &[(&str, &str)]) -> Vec<Vec<String>> {
    let package = Package::new(files.iter().map(|(file, text)| (Path::new(*file), *text)));
    let names = |circle: &Imports| circle.keys().map(|module| module.join("::")).collect();
    package.circles().iter().map(names).collect()
}

#[test]
fn circle_is_found_by_use_by_path_and_in_macros() {
    let by_use =
        [("lib.rs", "mod a; mod b;"), ("a.rs", "use crate::b::B;"), ("b.rs", "use super::a;")];
    assert_eq!(circles(&by_use), [["a", "b"]]);
    let by_path = [
        ("a.rs", "fn f() { let x: Option<crate::b::B> = None; }"),
        ("b.rs", "use crate::c; fn f() { c::g() }"),
        ("c/mod.rs", "fn f() { assert!(1 == super::a::N, \"{}\", 2) }"),
        ("d.rs", "use crate::{a::{self, A}, b as x};"),
    ];
    assert_eq!(circles(&by_path), [["a", "b", "c"]]);
    let one_way = [("a.rs", "use crate::b::B; use std::fs; use b::C;"), ("b.rs", "use core::a;")];
    assert!(circles(&one_way).is_empty());
}

#[test]
fn re_export_counts_for_the_module_that_the_name_comes_from() {
    // `a` and `c` are a circle, though each names only the crate root or `b`.
    let circle = [
        ("lib.rs", "pub(crate) use b::X; cfg_if! { if #[cfg(unix)] { pub use crate::a::A; } }"),
        ("a.rs", "use crate::X;"),
        ("b.rs", "pub use crate::c::Y as X;"),
        ("c.rs", "use crate::A;"),
    ];
    assert_eq!(circles(&circle), [["a", "c"]]);
    // `b` does nothing but to hand on what `a` takes.
    let none = [
        ("a.rs", "use crate::b::X;"),
        ("b.rs", "pub use crate::c::X; use crate::a::A;"),
        ("c.rs", ""),
    ];
    assert!(circles(&none).is_empty());
}

#[test]
fn re_export_of_one_of_several_modules_counts_for_each() {
    let choice =
        "cfg_select! { unix => { mod x; pub use x::Reg; } _ => { mod y; pub use y::Reg; } }";
    for of_arch in ["arch/x.rs", "arch/y.rs"] {
        let mut files = vec![
            ("arch/mod.rs", choice),
            ("arch/x.rs", ""),
            ("arch/y.rs", ""),
            ("context.rs", "use crate::arch::Reg;"),
        ];
        files.iter_mut().find(|file| file.0 == of_arch).unwrap().1 = "use crate::context::C;";
        let of_arch = of_arch.trim_end_matches(".rs").replace('/', "::");
        assert_eq!(circles(&files), [[of_arch.as_str(), "context"]]);
    }
}

#[test]
fn parent_and_child_are_no_circle_and_brothers_are() {
    let family = [
        ("a/mod.rs", "mod b; mod c; use b::B; use c::C;"),
        ("a/b.rs", "use super::A; use crate::a::X;"),
        ("a/c.rs", "mod inner { use super::super::A; }"),
    ];
    assert!(circles(&family).is_empty());
    let brothers = [
        ("a.rs", ""),
        ("a/b.rs", "use super::c::C;"),
        ("a/c.rs", "mod inner { use super::super::b::B; }"),
    ];
    assert_eq!(circles(&brothers), [["a::b", "a::c"]]);
}

#[test]
fn what_is_for_tests_alone_does_not_count() {
    let files = |test: &'static str| [("a.rs", "use crate::b::B;"), ("b.rs", test)];
    for test in [
        "#[cfg(test)] use crate::a::A;",
        "#[cfg(all(loom, test))] mod tests { use crate::a::A; }",
        "#[cfg(test)] fn f() { crate::a::f() }",
        "impl B { #[cfg(any(test, all(test, loom)))] fn f() { crate::a::f() } }",
        "#![cfg(test)] use crate::a::A;",
        "cfg_if! { if #[cfg(test)] { use crate::a::A; } else { } }",
    ] {
        assert!(circles(&files(test)).is_empty(), "{test}");
    }
    for code in ["#[cfg(not(test))] use crate::a::A;", "#[cfg(any(test, unix))] use crate::a::A;"] {
        assert_eq!(circles(&files(code)), [["a", "b"]], "{code}");
    }
    let model = [
        ("lib.rs", "mod a; #[cfg(all(test, loom))] mod model;"),
        ("a.rs", "use crate::model::M;"),
        ("model/mod.rs", "use crate::a::A;"),
    ];
    assert!(circles(&model).is_empty());
}

#[test]
fn circle_is_described_file_by_file() {
    let files = [("a.rs", "use crate::b::B;"), ("b/mod.rs", "fn f() { super::a::f() }")];
    let package = Package::new(files.map(|(file, text)| (Path::new(file), text)));
    let text = package.describe(&package.circles()[0], Path::new("x/src"));
    let expected = "x/src/a.rs imports x/src/b/mod.rs (b::B)\n    \
                    x/src/b/mod.rs imports x/src/a.rs (a::f)";
    assert_eq!(text, expected);
}
