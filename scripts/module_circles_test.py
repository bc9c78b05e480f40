"""The self-test of module_circles.py: small crates, and the arrows and circles between their modules."""

import pathlib
import sys

from module_circles import Parser, arrows, check

# Name, files, the arrows expected ("parent: a -> b"), the number of circles.
CASES = [
    (
        "use lines, in both directions",
        {"lib.rs": "mod a; mod b; mod c;", "a.rs": "use crate::b::B; pub struct A;", "b.rs": "use super::a::A; pub struct B;", "c.rs": "use crate::a::A;"},
        ["crate: a -> b", "crate: b -> a", "crate: c -> a"],
        1,
    ),
    (
        "a circle of three has one arrow each",
        {"lib.rs": "mod a; mod b; mod c;", "a.rs": "use crate::b;", "b.rs": "use crate::c;", "c.rs": "use crate::a;"},
        ["crate: a -> b", "crate: b -> c", "crate: c -> a"],
        1,
    ),
    (
        "parent and child are no arrow",
        {"lib.rs": "mod a; pub struct Top; pub fn made() {}", "a.rs": "mod x; use crate::Top; pub fn f() { super::made(); x::g() }", "a/x.rs": "use super::f; use crate::a; pub fn g() { f(); a::f() }"},
        [],
        0,
    ),
    (
        "what a parent re-exports belongs to the child that defines it, renamed and in a chain",
        {
            "lib.rs": "#![deny(x)] #[cfg(unix)] mod a; mod b; mod c; mod d; pub use b::Renamed; pub(crate) use c::{deep::{self, Low}, f as g};",
            "a.rs": "use crate::Renamed as Other;",
            "b.rs": "pub use super::c::Thing as Renamed;",
            "c.rs": "pub mod deep { pub struct Low; } pub struct Thing; pub fn f() {}",
            "d.rs": "fn h(_: super::Low) { crate::g(); crate::deep::x() }",
        },
        ["crate: a -> b", "crate: a -> c", "crate: b -> c", "crate: d -> c"],
        0,
    ),
    (
        "private imports of a parent, and globs of it and of a sibling",
        {
            "lib.rs": "mod m; mod types; pub use types::*;",
            "types.rs": "#[derive(Debug)] pub struct Saved; impl Saved { fn f(&self) {} } pub(crate) const fn make() {}",
            "m/mod.rs": "mod x; mod y; mod z; use y::Own; use crate::Saved;",
            "m/x.rs": "use super::*; fn f(_: Own) { let y = 1; z::go() }",
            "m/y.rs": "use super::z::*; pub struct Own; fn f() { go(); Saved }",
            "m/z.rs": "use crate::*; pub fn go() { make() }",
        },
        ["crate: m -> types", "crate::m: x -> y", "crate::m: x -> z", "crate::m: y -> z"],
        0,
    ),
    (
        "paths in code, in generics, after a range, in macros and in serde's attributes",
        {
            "lib.rs": "mod a; mod b; mod c; mod d; mod e; mod f; mod g;",
            "a.rs": "fn f<T: crate::b::B>(x: Vec<super::c::C>) { &x[..crate::d::N] }",
            "b.rs": "macro_rules! m { () => { $crate::e::go() } }",
            "c.rs": '#[serde(default = "crate::f::number")] struct C;',
            "d.rs": "fn f() -> <X as crate::g::G>::Out { use super::b; }",
            "e.rs": "", "f.rs": "", "g.rs": "",
        },
        ["crate: a -> b", "crate: a -> c", "crate: a -> d", "crate: b -> e", "crate: c -> f", "crate: d -> b", "crate: d -> g"],
        0,
    ),
    (
        "no comment, string, lifetime, field, method or other crate is a path",
        {
            "lib.rs": "mod a; mod b; mod rand;",
            "a.rs": "//! crate::b::B\n/* /* use crate::b; */ use crate::b::B; */\nuse std::fmt; use ::rand::x; use serde::b::B;\n"
            "fn f<'b>(x: &'b str) { let _ = (\"crate::b\\\" crate::b::f()\", r#\"crate::b\" crate::b\"#, '\"', b'\\'', 'x'); x.b::<u8>(); x.b.go(); }",
            "b.rs": "", "rand.rs": "",
        },
        [],
        0,
    ),
    (
        "tests are no arrows",
        {
            "lib.rs": "mod a; mod b;",
            "a.rs": "#[cfg(test)] mod tests { use crate::b::B; }\n#[cfg(all(test, unix))] #[allow(x)] pub(crate) fn f() -> [u8; 1] { crate::b::f() }\n#[test] fn t() { crate::b::f() }\n#[cfg(test)] use crate::b::{B, C};\n#[cfg(test)] mod other;\nfn g() { S { #[cfg(test)] x: crate::b::f(), y: 1 }; }",
            "b.rs": "use crate::a::g; #[cfg(not(test))] use crate::a;",
        },
        ["crate: b -> a"],
        0,
    ),
    (
        "subtrees count for the siblings above them, at any depth",
        {
            "lib.rs": "mod a; mod b;",
            "a/mod.rs": "mod deep; pub mod x; pub mod y;",
            "a/deep.rs": "mod low { use crate::b::f; } mod high { use super::low; use super::super::x::X; }",
            "a/x.rs": "use super::y; pub struct X;",
            "a/y.rs": "use crate::a::x::X;",
            "b.rs": "use crate::a::x::{self, X}; pub fn f() { x::g() }",
        },
        ["crate: a -> b", "crate: b -> a", "crate::a: deep -> x", "crate::a: x -> y", "crate::a: y -> x", "crate::a::deep: high -> low"],
        2,
    ),
    (
        "a function and a module may share a name; a re-export of itself ends",
        {
            "lib.rs": "mod a; pub mod b; mod c; mod d; mod e; pub use b::b; pub use c::*;",
            "a.rs": "fn f() { crate::b(1); super::c::g() }",
            "d.rs": "use crate::e; fn f() { e::x() }", "e.rs": "",
            "b.rs": "pub use crate::c::again; pub fn b(_: u8) {}",
            "c.rs": "pub use crate::b::again; pub fn e() {} pub fn g() {}",
        },
        ["crate: a -> b", "crate: a -> c", "crate: b -> c", "crate: c -> b", "crate: d -> e"],
        1,
    ),
]


def run():
    failed = 0
    for name, files, expected, circles in CASES:
        root = Parser(lambda path: files.get(str(path))).crate(pathlib.PurePosixPath("lib.rs"))
        found = sorted(f"{parent}: {a} -> {b}" for parent, edges in arrows(root).items() for a, b in edges)
        count = check("sample", root, False, show=lambda line: None)
        if (found, count) != (sorted(expected), circles):
            failed += 1
            print(f"{name}:\n    expected {sorted(expected)}, {circles} circles\n    found    {found}, {count} circles")
    print(f"self-test: {len(CASES) - failed} of {len(CASES)} samples as expected")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(run())
