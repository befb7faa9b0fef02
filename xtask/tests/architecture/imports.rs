//! Which file of a crate imports which other file of it.
//!
//! A path is followed to the file that defines what it names: names that a file only passes on (`pub use`) are looked
//! up where they come from. A file that does nothing but pass a name on does not depend on the name's file. Code under
//! `#[cfg(test)]` is left out.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use proc_macro2::{TokenStream, TokenTree};
use syn::visit::Visit;
use syn::{Attribute, Item, UseTree, Visibility};

/// Names that lead to names; a chain that is longer is a circle of names.
const CHAIN_MAX: usize = 16;

/// One import, as a message shows it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Import {
    /// The file that imports.
    pub(crate) from: PathBuf,
    /// The file that defines what is imported.
    pub(crate) to: PathBuf,
    /// The file that imports stands below the module that defines it.
    pub(crate) is_nesting: bool,
    /// Where the path stands in `from`, counted from 1.
    pub(crate) line: usize,
    /// The path as it is written.
    pub(crate) path: String,
}

/// A module: a file, or a part of one between braces.
#[derive(Default)]
struct Module {
    file: PathBuf,
    parent: Option<usize>,
    children: BTreeMap<String, usize>,
    /// Names that a `use` brings in, and the path that it gives.
    names: BTreeMap<String, Vec<String>>,
    globs: Vec<Vec<String>>,
    items: BTreeSet<String>,
    /// Paths of this module that make it depend on what they name.
    paths: Vec<(usize, Vec<String>)>,
}

/// The modules of one crate, its root first.
pub(crate) struct Modules {
    modules: Vec<Module>,
    /// Modules without a file that could be read, as `file: mod name`.
    pub(crate) missing: Vec<String>,
}

impl Modules {
    /// Reads a crate from its root file on. `read` gives the text of a file.
    pub(crate) fn read(root: &Path, read: &impl Fn(&Path) -> Option<String>) -> Self {
        let mut crate_ = Self { modules: Vec::new(), missing: Vec::new() };
        let folder = root.parent().unwrap_or(root).to_path_buf();
        crate_.add_file(root.to_path_buf(), &folder, None, read);
        crate_
    }

    /// The first import of each file from each other one.
    pub(crate) fn imports(&self) -> BTreeSet<Import> {
        let mut imports = BTreeMap::new();
        for (at, module) in self.modules.iter().enumerate() {
            for (line, path) in &module.paths {
                let to = self.resolve(at, path, CHAIN_MAX);
                let other = to.filter(|to| self.modules[*to].file != module.file);
                other.map(|to| imports.entry((at, to)).or_insert((*line, path)));
            }
        }
        let imports = imports.into_iter().map(|((at, to), (line, path))| Import {
            from: self.modules[at].file.clone(),
            to: self.modules[to].file.clone(),
            is_nesting: self.is_above(to, at),
            line,
            path: path.join("::"),
        });
        imports.collect()
    }

    fn is_above(&self, module: usize, other: usize) -> bool {
        let mut above = std::iter::successors(self.modules[other].parent, |at| self.modules[*at].parent);
        above.any(|at| self.modules[at].file == self.modules[module].file)
    }

    /// The paths of each file, whatever they lead to.
    pub(crate) fn paths(&self) -> impl Iterator<Item = (&Path, usize, String)> {
        let all = self.modules.iter().flat_map(|module| module.paths.iter().map(move |path| (module, path)));
        all.map(|(module, (line, path))| (module.file.as_path(), *line, path.join("::")))
    }

    fn add_file(
        &mut self,
        file: PathBuf,
        folder: &Path,
        parent: Option<usize>,
        read: &impl Fn(&Path) -> Option<String>,
    ) -> Option<usize> {
        let syntax = syn::parse_file(&read(&file)?).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        Some(self.add_module(file, folder, parent, &syntax.items, read))
    }

    fn add_module(
        &mut self,
        file: PathBuf,
        folder: &Path,
        parent: Option<usize>,
        items: &[Item],
        read: &impl Fn(&Path) -> Option<String>,
    ) -> usize {
        let at = self.modules.len();
        self.modules.push(Module { file, parent, ..Module::default() });
        let mut found = Found::default();
        for item in items.iter().filter(|item| !is_for_tests(attributes(item))) {
            match item {
                Item::Mod(module) => self.add_child(at, folder, module, read),
                other => found.visit_item(other),
            }
        }
        let module = &mut self.modules[at];
        module.names = found.names;
        module.globs = found.globs;
        module.items = found.items;
        module.paths = found.paths;
        at
    }

    fn add_child(
        &mut self,
        parent: usize,
        folder: &Path,
        module: &syn::ItemMod,
        read: &impl Fn(&Path) -> Option<String>,
    ) {
        let name = module.ident.to_string();
        let below = folder.join(&name);
        let file = self.modules[parent].file.clone();
        let child = match &module.content {
            Some((_, items)) => Some(self.add_module(file.clone(), &below, Some(parent), items, read)),
            None => self
                .add_file(folder.join(format!("{name}.rs")), &below, Some(parent), read)
                .or_else(|| self.add_file(below.join("mod.rs"), &below, Some(parent), read)),
        };
        match child {
            Some(child) => drop(self.modules[parent].children.insert(name, child)),
            None => self.missing.push(format!("{}: mod {name}", file.display())),
        }
    }

    /// The module that defines what a path names, if it is one of this crate.
    fn resolve(&self, at: usize, path: &[String], chain: usize) -> Option<usize> {
        let chain = chain.checked_sub(1)?;
        let (first, rest) = path.split_first()?;
        match first.as_str() {
            "crate" => Some(self.descend(0, rest, chain)?),
            "self" => self.descend(at, rest, chain),
            "super" => {
                let parent = self.modules[at].parent?;
                match rest.first().map(String::as_str) {
                    Some("super") => self.resolve(parent, rest, chain),
                    _ => self.descend(parent, rest, chain),
                }
            }
            _ if self.knows(at, first) => self.descend(at, path, chain),
            _ => None,
        }
    }

    fn knows(&self, at: usize, name: &str) -> bool {
        let module = &self.modules[at];
        module.children.contains_key(name) || module.names.contains_key(name)
    }

    fn descend(&self, at: usize, path: &[String], chain: usize) -> Option<usize> {
        let Some((first, rest)) = path.split_first() else { return Some(at) };
        let module = &self.modules[at];
        if let Some(child) = module.children.get(first) {
            return self.descend(*child, rest, chain);
        }
        if let Some(name) = module.names.get(first) {
            let whole: Vec<String> = name.iter().chain(rest).cloned().collect();
            return self.resolve(at, &whole, chain);
        }
        if !module.items.contains(first) {
            let below = module.globs.iter().filter_map(|glob| self.resolve(at, glob, chain));
            let mut having =
                below.filter(|below| self.knows(*below, first) || self.modules[*below].items.contains(first));
            if let Some(below) = having.next() {
                return self.descend(below, path, chain.checked_sub(1)?);
            }
        }
        Some(at)
    }
}

/// What the items of a module name.
#[derive(Default)]
struct Found {
    names: BTreeMap<String, Vec<String>>,
    globs: Vec<Vec<String>>,
    items: BTreeSet<String>,
    paths: Vec<(usize, Vec<String>)>,
}

impl Found {
    fn add_use(&mut self, tree: &UseTree, prefix: &[String], passed_on: bool) {
        match tree {
            UseTree::Path(path) => {
                let longer: Vec<String> = prefix.iter().cloned().chain([path.ident.to_string()]).collect();
                self.add_use(&path.tree, &longer, passed_on);
            }
            UseTree::Group(group) => group.items.iter().for_each(|tree| self.add_use(tree, prefix, passed_on)),
            UseTree::Glob(glob) => {
                let line = glob.star_token.spans[0].start().line;
                self.globs.push(prefix.to_vec());
                self.add_path(line, prefix.to_vec(), passed_on);
            }
            UseTree::Name(name) => self.add_name(&name.ident, &name.ident, prefix, passed_on),
            UseTree::Rename(rename) => self.add_name(&rename.ident, &rename.rename, prefix, passed_on),
        }
    }

    fn add_name(&mut self, name: &syn::Ident, shown_as: &syn::Ident, prefix: &[String], passed_on: bool) {
        let mut path = prefix.to_vec();
        let itself = name == "self";
        if !itself {
            path.push(name.to_string());
        }
        let shown_as = if itself && shown_as == "self" { path.last().cloned() } else { Some(shown_as.to_string()) };
        self.names.extend(shown_as.map(|shown_as| (shown_as, path.clone())));
        self.add_path(name.span().start().line, path, passed_on);
    }

    fn add_path(&mut self, line: usize, path: Vec<String>, passed_on: bool) {
        if !passed_on {
            self.paths.push((line, path));
        }
    }

    /// Paths in what a macro is called with: names between two colons.
    fn add_tokens(&mut self, tokens: TokenStream) {
        let mut path: Vec<String> = Vec::new();
        let mut colons = 0;
        let mut line = 0;
        for token in tokens {
            match token {
                TokenTree::Ident(name) if colons == 2 && !path.is_empty() => path.push(name.to_string()),
                TokenTree::Ident(name) => {
                    self.end_path(line, &mut path);
                    line = name.span().start().line;
                    path.push(name.to_string());
                }
                TokenTree::Punct(sign) if sign.as_char() == ':' => {
                    colons += 1;
                    continue;
                }
                TokenTree::Group(group) => {
                    self.end_path(line, &mut path);
                    self.add_tokens(group.stream());
                }
                _ => self.end_path(line, &mut path),
            }
            colons = 0;
        }
        self.end_path(line, &mut path);
    }

    fn end_path(&mut self, line: usize, path: &mut Vec<String>) {
        let path = std::mem::take(path);
        if path.len() > 1 {
            self.paths.push((line, path));
        }
    }
}

impl<'ast> Visit<'ast> for Found {
    fn visit_item(&mut self, item: &'ast Item) {
        if is_for_tests(attributes(item)) {
            return;
        }
        self.items.extend(name_of(item));
        syn::visit::visit_item(self, item);
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        self.add_use(&item.tree, &[], !matches!(item.vis, Visibility::Inherited));
    }

    /// The path of `pub(in path)` imports nothing.
    fn visit_visibility(&mut self, _: &'ast Visibility) {}

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let segments: Vec<String> = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        if let Some(first) = path.segments.first() {
            self.paths.push((first.ident.span().start().line, segments));
        }
        syn::visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, call: &'ast syn::Macro) {
        self.add_tokens(call.tokens.clone());
        syn::visit::visit_macro(self, call);
    }

    fn visit_impl_item_fn(&mut self, function: &'ast syn::ImplItemFn) {
        if !is_for_tests(&function.attrs) {
            syn::visit::visit_impl_item_fn(self, function);
        }
    }
}

fn is_for_tests(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let list = attribute.meta.require_list();
        attribute.path().is_ident("cfg") && list.is_ok_and(|list| list.tokens.to_string() == "test")
    })
}

fn attributes(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Macro(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        Item::Type(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    }
}

fn name_of(item: &Item) -> Option<String> {
    let name = match item {
        Item::Const(item) => &item.ident,
        Item::Enum(item) => &item.ident,
        Item::Fn(item) => &item.sig.ident,
        Item::Macro(item) => item.ident.as_ref()?,
        Item::Static(item) => &item.ident,
        Item::Struct(item) => &item.ident,
        Item::Trait(item) => &item.ident,
        Item::Type(item) => &item.ident,
        _ => return None,
    };
    Some(name.to_string())
}
