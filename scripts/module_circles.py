#!/usr/bin/env python3
"""Finds import circles between the modules of each crate.

    python3 scripts/module_circles.py [CRATE...] [--list]
    python3 scripts/module_circles.py --self-test

CRATE is a folder with src/ in it; the default is every crate of the workspace. Needs Python's standard library only.
Prints every circle with one example (file:line, path) per arrow, and exits with 1 if there is one; --list prints every
arrow.

An arrow A -> B stands between siblings, the children of one parent: a file of A's subtree names an item of B's. Parent
and child are no arrow. `use` lines and paths in code count alike, and both are followed through re-exports (braces,
globs, renames, chains): an item that a parent re-exports belongs to the child that defines it. Tests do not count.
Every file counts, whatever features it needs. What types infer without a path is not seen, nor what macros define.
"""

import argparse
import collections
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent

TOKEN = re.compile(
    r"""(?P<space>\s+|//[^\n]*)|(?P<block>/\*)
    |(?P<raw>[bc]?r(?P<hashes>\#*)".*?"(?P=hashes))|(?P<string>[bc]?"(?:[^"\\]|\\.)*")
    |(?P<char>b?'(?:[^'\\\n]|\\(?:x..|u\{[^}]*\}|.))')|(?P<lifetime>'[^\W\d]\w*)
    |(?P<name>(?:r\#)?[^\W\d]\w*)|(?P<number>\d\w*(?:\.\d\w*)?)|(?P<mark>::|.)""",
    re.VERBOSE | re.DOTALL,
)
TYPE, VALUE, MACRO = "type", "value", "macro"
NAMESPACES = (TYPE, VALUE, MACRO)
# What a keyword at the level of a module defines.
DEFINES = {
    "struct": (TYPE, VALUE), "enum": (TYPE,), "trait": (TYPE,), "type": (TYPE,), "union": (TYPE,),
    "fn": (VALUE,), "const": (VALUE,), "static": (VALUE,),
}  # fmt: skip
ITEM_BY_BRACE = {"fn", "struct", "enum", "union", "trait", "impl", "mod", "macro_rules"}

Token = collections.namedtuple("Token", "kind text line")
# `place` is the module an entity is defined in (for a module, itself), `through` the modules that re-export it.
Entity = collections.namedtuple("Entity", "space place is_module through")
Use = collections.namedtuple("Use", "path name public line")
Path = collections.namedtuple("Path", "path line spaces")
Edge = collections.namedtuple("Edge", "file line path")


def tokens_of(text):
    out, at, line = [], 0, 1
    while at < len(text):
        match = TOKEN.match(text, at)
        kind, end = match.lastgroup, match.end()
        if kind == "block":
            depth = 1
            while depth and (mark := re.compile(r"/\*|\*/").search(text, end)):
                depth, end = depth + (1 if mark[0] == "/*" else -1), mark.end()
            end = len(text) if depth else end
        elif kind == "name":
            out.append(Token(kind, match[0].removeprefix("r#"), line))
        elif kind == "string":
            out.append(Token(kind, match[0].lstrip("bc")[1:-1], line))
        elif kind != "space":
            out.append(Token("other" if kind in ("raw", "hashes", "char") else kind, match[0], line))
        line += text.count("\n", at, end)
        at = end
    return out


class Module:
    def __init__(self, name, parent, file):
        self.name, self.parent, self.file = name, parent, file
        self.children, self.defines, self.uses, self.paths = {}, {}, [], []

    @property
    def chain(self):
        return (self.parent.chain if self.parent else ()) + (self,)

    def walk(self):
        yield self
        for child in self.children.values():
            yield from child.walk()

    def sees_private_of(self, other):
        return other in self.chain

    def __str__(self):
        return "::".join(module.name for module in self.chain)


class Parser:
    """Fills a tree of modules from files; `read` gives a file's text, or None."""

    def __init__(self, read):
        self.read = read

    def crate(self, file):
        root = Module("crate", None, file)
        self.file(root, file, file.parent)
        return root

    def file(self, module, file, folder):
        self.tokens = tokens_of(self.read(file))
        self.body(module, 0, len(self.tokens), folder)

    def child(self, module, name, folder, path):
        places = [folder / path] if path else [folder / f"{name}.rs", folder / name / "mod.rs"]
        file = next((place for place in places if self.read(place) is not None), None)
        if file is None:
            sys.exit(f"{module.file}: no file for `mod {name};`")
        child = module.children.setdefault(name, Module(name, module, file))
        own_folder = file.parent if path or file.name == "mod.rs" else folder / name
        saved = self.tokens
        self.file(child, file, own_folder)
        self.tokens = saved

    def text(self, at):
        return self.tokens[at].text if 0 <= at < len(self.tokens) and self.tokens[at].kind != "string" else ""

    def is_name(self, at):
        return 0 <= at < len(self.tokens) and self.tokens[at].kind == "name"

    def closing(self, at):
        """The place of the bracket that closes the one at `at`."""
        depth = 0
        while at < len(self.tokens):
            depth += (self.text(at) in ("(", "[", "{")) - (self.text(at) in (")", "]", "}"))
            if depth == 0:
                return at
            at += 1
        sys.exit("brackets do not match")

    def body(self, module, at, end, folder):
        depth, public, attribute_path = 0, False, None
        while at < end:
            word = self.text(at)
            if word == "#" and self.text(at + 1) == "[":
                close = self.closing(at + 1)
                if self.is_test(at + 2, close):
                    at = self.after_item(close + 1, end)
                    continue
                if self.text(at + 2) == "path" and self.tokens[close - 1].kind == "string":
                    attribute_path = self.tokens[close - 1].text
                if self.text(at + 2) == "serde":
                    self.serde_paths(module, at + 2, close)
                depth += 1
                at += 2
            elif word == "use" and self.text(at - 1) != "+" and self.text(at + 1) != "<":
                at = self.use_tree(module, at + 1, [], public and depth == 0) + 1
                public = False
            elif word == "mod" and self.is_name(at + 1) and self.text(at + 2) == ";":
                self.child(module, self.text(at + 1), folder, attribute_path)
                at, public, attribute_path = at + 3, False, None
            elif word == "mod" and self.is_name(at + 1) and self.text(at + 2) == "{":
                name, close = self.text(at + 1), self.closing(at + 2)
                child = module.children.setdefault(name, Module(name, module, module.file))
                self.body(child, at + 3, close, folder / name)
                at, public = close + 1, False
            elif word == "macro_rules" and self.text(at + 1) == "!":
                module.defines.setdefault(self.text(at + 2), {})[MACRO] = True
                at += 3
            elif word in DEFINES and self.is_name(at + 1) and self.text(at - 1) != "*":
                name = at + 2 if self.text(at + 1) == "mut" else at + 1
                if depth == 0 and self.text(at + 1) != "fn":
                    for space in DEFINES[word]:
                        module.defines.setdefault(self.text(name), {})[space] = public
                    public = False
                at = name + 1 if self.text(at + 1) not in ("fn", "unsafe", "extern", "async") else at + 1
            elif self.is_name(at) or (word == "::" and self.is_name(at + 1) and self.text(at - 1) in ("", "(", ",", "=", "<", "&", "{")):
                at = self.path(module, at, public)
                public = public or word == "pub" and depth == 0
            else:
                depth += (word in ("(", "[", "{")) - (word in (")", "]", "}"))
                public = public and not (depth == 0 and word in (";", "}"))
                at += 1

    def path(self, module, at, public):
        """Records the path that starts at `at`, if there is one; the place after it."""
        start, line = at, self.tokens[at].line
        if self.text(at) == "::":
            return self.skip_path(at + 1)
        names = [self.text(at)]
        while self.text(at + 1) == "::" and self.is_name(at + 2):
            at += 2
            names.append(self.text(at))
        before, after = self.text(start - 1), self.text(at + 1)
        field = before == "." and self.text(start - 2) != "."
        if field or before == "::":
            return at + 1
        if after == "!" and self.text(at + 2) in ("(", "[", "{"):
            spaces = (MACRO,)
        elif names[-1][0].islower():
            spaces = (VALUE,)
        else:
            spaces = (TYPE, VALUE)
        bare = len(names) == 1 and (names[0][0].islower() and after not in ("(", "!") or after == ":")
        if not bare:
            module.paths.append(Path(names, line, spaces))
        return at + 1

    def skip_path(self, at):
        while self.text(at + 1) == "::" and self.is_name(at + 2):
            at += 2
        return at + 1

    def use_tree(self, module, at, prefix, public):
        """Records the uses of one tree; the place of what ends it (`;`, `,` or `}`)."""
        path = list(prefix)
        if self.text(at) == "::":
            path.append("")
            at += 1
        while True:
            word, line = self.text(at), self.tokens[at].line
            if word == "{":
                close = self.closing(at)
                at += 1
                while at < close:
                    at = self.use_tree(module, at, path, public)
                    at += self.text(at) == ","
                return close + 1
            if word == "*":
                module.uses.append(Use(path, "*", public, line))
                return at + 1
            if word == "$":
                at += 1
                continue
            if not self.is_name(at):
                return at
            if not (word == "self" and path):
                path.append(word)
            at += 1
            if self.text(at) == "::":
                at += 1
                continue
            name = path[-1]
            if self.text(at) == "as":
                name = self.text(at + 1)
                at += 2
            module.uses.append(Use(path, name, public, line))
            return at

    def is_test(self, at, end):
        words = [self.text(i) for i in range(at, end)]
        if words[:1] == ["test"]:
            return True
        return words[:1] == ["cfg"] and (words[2:3] == ["test"] or words[2:3] == ["all"] and "test" in words and "not" not in words)

    def after_item(self, at, end):
        """The place after the item, field or statement at `at`."""
        while self.text(at) == "#" and self.text(at + 1) == "[":
            at = self.closing(at + 1) + 1
        by_brace = False
        if self.text(at) == "pub":
            at += 1
            at = self.closing(at) + 1 if self.text(at) == "(" else at
        item = self.text(at) in DEFINES or self.text(at) in ITEM_BY_BRACE or self.text(at) in ("use", "unsafe", "async", "extern")
        while at < end:
            word = self.text(at)
            by_brace = by_brace or word in ITEM_BY_BRACE
            if word in ("(", "[", "{"):
                at = self.closing(at)
                if word == "{" and (by_brace or not item):
                    return at + 1 + (self.text(at + 1) in (",", ";"))
            elif word == ";" or word == "," and not item:
                return at + 1
            at += 1
        return end

    def serde_paths(self, module, at, end):
        """serde calls what its attributes name in strings."""
        for token in self.tokens[at:end]:
            if token.kind == "string" and re.fullmatch(r"\w+(::\w+)+", token.text):
                module.paths.append(Path(token.text.split("::"), token.line, (VALUE, TYPE)))


class Resolver:
    def __init__(self, root):
        self.root = root

    def resolve(self, module, path, spaces, seen=frozenset()):
        """The entities that `path` names in `module`; none for those of other crates."""
        current, rest = None, list(path)
        while rest and rest[0] in ("crate", "self", "super"):
            word = rest.pop(0)
            if word == "crate":
                current = self.root
            elif word == "super":
                current = (current or module).parent or self.root
            else:
                current = current or module
        if rest[:1] == [""]:
            return []
        if current is not None:
            found = [Entity(TYPE, current, True, ())]
        else:
            first = rest.pop(0)
            found = self.look_up(module, first, (TYPE,) if rest else spaces, module, seen)
        for i, name in enumerate(rest):
            inside = [entity for entity in found if entity.is_module]
            if not inside:
                return found
            holder = inside[0]
            wanted = (TYPE,) if i + 1 < len(rest) else spaces
            next_found = self.look_up(holder.place, name, wanted, module, seen)
            # What a macro made is its module's own.
            next_found = next_found or [Entity(wanted[0], holder.place, False, ())]
            found = [entity._replace(through=holder.through + entity.through) for entity in next_found]
        return found

    def look_up(self, module, name, spaces, asker, seen):
        return [entity for space in spaces for entity in self.one_space(module, name, space, asker, seen)]

    def one_space(self, module, name, space, asker, seen):
        key = (module, name, space)
        if key in seen:
            return []
        seen = seen | {key}
        private = asker.sees_private_of(module)
        if space == TYPE and name in module.children:
            return [Entity(TYPE, module.children[name], True, ())]
        if space in module.defines.get(name, {}):
            return [Entity(space, module, False, ())]
        named = [use for use in module.uses if use.name == name and (use.public or private)]
        found = [
            entity._replace(through=(module,) + entity.through)
            for use in named
            for entity in self.resolve(module, use.path, (space,), seen)
        ]
        if found or named:
            return [entity for entity in found if entity.space == space]
        for use in module.uses:
            if use.name == "*" and (use.public or private):
                for target in self.resolve(module, use.path, (TYPE,), seen):
                    if target.is_module:
                        hits = self.one_space(target.place, name, space, module, seen)
                        found += [e._replace(through=(module,) + target.through + e.through) for e in hits]
        return found

    def references(self, module):
        """(line, path, entities) of everything a module names."""
        called = {path.path[0] for path in module.paths if len(path.path) == 1}
        for use in module.uses:
            path = use.path + (["*"] if use.name == "*" else [])
            found = self.resolve(module, use.path, (TYPE,) if use.name == "*" else NAMESPACES)
            if not use.public and use.name not in called and any(entity.is_module for entity in found):
                # A function of the same name comes along, and is not called.
                found = [entity for entity in found if entity.is_module]
            yield use.line, path, found
        globs = any(use.name == "*" for use in module.uses)
        own = {use.name for use in module.uses}
        for path in module.paths:
            if len(path.path) == 1 and (not globs or path.path[0] in own):
                continue
            yield path.line, path.path, self.resolve(module, path.path, path.spaces)


def arrows(root):
    """{parent: {(a, b): example}} between siblings."""
    resolver, out = Resolver(root), collections.defaultdict(dict)
    for module in root.walk():
        for line, path, entities in resolver.references(module):
            for target in {place for entity in entities for place in (entity.place, *entity.through)}:
                own, other = module.chain, target.chain
                for parent, a, b in zip(own, own[1:], other[1:]):
                    if a is not b:
                        out[parent].setdefault((a.name, b.name), Edge(module.file, line, "::".join(path)))
                        break
    return out


def components(edges):
    """Strongly connected components of more than one name (Tarjan)."""
    after = collections.defaultdict(list)
    for a, b in sorted(edges):
        after[a].append(b)
    index, low, stack, out = {}, {}, [], []

    def visit(node):
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in after[node]:
            if other not in index:
                visit(other)
            if other in stack:
                low[node] = min(low[node], low[other])
        if low[node] == index[node]:
            members = set()
            while node not in members:
                members.add(stack.pop())
            if len(members) > 1:
                out.append(members)

    for node in list(after):
        if node not in index:
            visit(node)
    return out


def check(name, root, list_all, show=print):
    """Prints a crate's circles; how many there are."""
    count = 0
    for parent, edges in sorted(arrows(root).items(), key=lambda item: str(item[0])):
        if list_all:
            for (a, b), edge in sorted(edges.items()):
                show(f"{name} {parent}: {a} -> {b}  {edge.file}:{edge.line}  {edge.path}")
        for members in sorted(components(edges), key=sorted):
            count += 1
            show(f"{name} {parent}: {len(members)} of {len(parent.children)} modules in a circle: {', '.join(sorted(members))}")
            for (a, b), edge in sorted(edges.items()):
                if a in members and b in members:
                    show(f"    {a} -> {b}  {edge.file}:{edge.line}  {edge.path}")
    return count


def read_file(file):
    path = ROOT / file
    return path.read_text(encoding="utf-8") if path.is_file() else None


def roots(crate):
    source = crate / "src"
    files = [source / "lib.rs", source / "main.rs", *sorted((ROOT / source / "bin").glob("*.rs"))]
    return [file.relative_to(ROOT) if file.is_absolute() else file for file in files if (ROOT / file).is_file()]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("crates", nargs="*", metavar="CRATE")
    parser.add_argument("--list", action="store_true", help="print every arrow")
    parser.add_argument("--self-test", action="store_true")
    args = parser.parse_args()
    if args.self_test:
        sys.dont_write_bytecode = True
        import module_circles_test

        return module_circles_test.run()
    if args.crates:
        crates = [pathlib.Path(crate).resolve().relative_to(ROOT) for crate in args.crates]
    else:
        crates = [path.parent.relative_to(ROOT) for path in sorted(ROOT.glob("crates/*/src"))] + [pathlib.Path("experiments")]
    count, modules = 0, 0
    for crate in crates:
        files = roots(crate)
        if not files:
            sys.exit(f"{crate}: no src/lib.rs or src/main.rs")
        for file in files:
            root = Parser(read_file).crate(file)
            modules += sum(1 for _ in root.walk())
            count += check(crate.name, root, args.list)
    print(f"{modules} modules, {count} circles")
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main())
