"""Small bugs made by rule: every mutant of a module, by operators over its syntax tree.

mutmut and cosmic-ray find their mutants in the same way, but both judge by a test command that runs
in a copy of the project for each one; here a mutant has to be judged by the notebooks that execute
its line, quickest first, which `tools/survey.py` does.

A mutant replaces one piece of the text and leaves all other lines where they are. Left alone are
docstrings, annotations, imports, `__all__`, and prose: strings in which there is a space, such as
the texts of errors, and whatever an f-string shows.
"""

from __future__ import annotations

import ast
import copy
import functools
import textwrap
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import CodeType

ARITHMETIC = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Div,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.MatMult: ast.Mult,
    ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr,
}
COMPARISON = {
    ast.Lt: (ast.LtE, ast.Gt),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.Lt),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
ERRORS = {"TypeError": "ValueError", "ValueError": "TypeError"}
CONTAINERS = {"tuple", "list", "bool", "int", "iter", "map"}  # f(x) is as good as x, or fails


@dataclass(frozen=True)
class Mutant:
    """One piece of a module's text, and what stands there instead."""

    operator: str
    function: str  # where it is, such as RNN.__call__, or "" at the top of the module
    start: int  # the piece of the text, in bytes
    end: int
    new: str
    line: int
    lines: range  # of which a notebook must execute one to notice anything
    around: int  # the first line of the smallest definition or statement around it
    below: int  # and how many lines there are after it
    before: str  # the lines with the piece, each stripped, as one
    after: str

    def part(self, source: str) -> str:
        """The text of what is around it, here or in the changed module."""
        lines = source.splitlines(keepends=True)
        end = len(lines) - self.below
        return textwrap.dedent("".join(lines[self.around - 1 : end]))

    def apply(self, source: str) -> str:
        """Return the module's text with this bug in it."""
        data = source.encode()
        return (data[: self.start] + self.new.encode() + data[self.end :]).decode()


def mutants(source: str, *, rewritings: bool = False) -> list[Mutant]:
    """Return every mutant of a module in the order of its text.

    Left out are mere rewritings, which compile to the same code, unless they are asked for.
    """
    finder = _Finder(source)
    finder.visit_body(ast.parse(source).body, "")
    found = {(m.start, m.end, m.new): m for m in finder.found if m.apply(source) != source}
    ordered = [found[place] for place in sorted(found)]
    return ordered if rewritings else [m for m in ordered if not is_rewriting(m, source)]


def is_rewriting(mutant: Mutant, source: str) -> bool:
    """Whether the smallest function (or statement) around a mutant compiles to the same code."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # `"" is not 0`, in a mutant
        try:
            changed = compile(mutant.part(mutant.apply(source)), "", "exec")
            return _meaning(changed) == _meaning_of(mutant.part(source))
        except SyntaxError:
            return True  # no program, so no bug


@functools.lru_cache
def _meaning_of(text: str) -> tuple:
    return _meaning(compile(text, "", "exec"))


def _meaning(code: CodeType) -> tuple:
    """What a piece of code does, without where it stands."""
    constants = tuple(
        _meaning(value) if isinstance(value, CodeType) else (type(value), repr(value))
        for value in code.co_consts
    )
    names = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
    return (code.co_name, code.co_code, code.co_exceptiontable, constants, names, code.co_flags)


def _line_starts(source: str) -> list[int]:
    starts = [0]
    for line in source.encode().splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    return starts


class _Finder:
    """Walks through statements and expressions and collects mutants."""

    def __init__(self, source: str):
        self.data = source.encode()
        self.starts = _line_starts(source)
        self.found: list[Mutant] = []
        self.function = ""
        self.lines = range(0)
        self.around = 1, 0
        self.num_lines = len(source.splitlines())
        self.inside = False  # of a function

    def text(self, node: ast.AST) -> str:
        """The text of a node, as `ast.get_source_segment` finds it much more slowly."""
        start = self.starts[node.lineno - 1] + node.col_offset
        return self.data[start : self.starts[node.end_lineno - 1] + node.end_col_offset].decode()

    # What a mutant is made of

    def replace(self, operator: str, node: ast.AST, new: ast.AST | str) -> None:
        """Add the mutant in which `new` stands in the place of `node`."""
        if isinstance(new, ast.AST):
            text = ast.unparse(ast.fix_missing_locations(new))
            if isinstance(new, ast.expr) and not isinstance(new, ATOMS):
                text = f"({text})"
        else:
            text = new
        start = self.starts[node.lineno - 1] + node.col_offset
        end = self.starts[node.end_lineno - 1] + node.end_col_offset
        self.add(operator, start, end, text, node.lineno)

    def add(self, operator: str, start: int, end: int, new: str, line: int) -> None:
        first = self.data.rfind(b"\n", 0, start) + 1
        last = self.data.find(b"\n", end)
        last = len(self.data) if last < 0 else last
        before = self.data[first:last].decode()
        after = (self.data[first:start] + new.encode() + self.data[end:last]).decode()
        self.found.append(
            Mutant(
                *(operator, self.function, start, end, new, line, self.lines, *self.around),
                *(_flat(before), _flat(after)),
            )
        )

    # Statements

    def visit_body(self, body: list[ast.stmt], function: str) -> None:
        for statement in body:
            self.function = function
            if not self.inside:
                self.around = self.place(statement)
            self.lines = range(statement.lineno, statement.end_lineno + 1)
            self.visit_statement(statement, function)

    def visit_statement(self, node: ast.stmt, function: str) -> None:
        match node:
            case ast.Import() | ast.ImportFrom() | ast.Pass() | ast.Global() | ast.Nonlocal():
                return
            case ast.Expr(ast.Constant()):  # a docstring, or `...`
                return
            case ast.FunctionDef():
                self.visit_function(node, function)
            case ast.ClassDef():
                inner = f"{function}.{node.name}".lstrip(".")
                self.visit_body(node.body, inner)
            case ast.If() | ast.While():
                self.lines = range(node.lineno, node.test.end_lineno + 1)
                self.condition(node.test)
                self.expression(node.test)
                self.visit_body(node.body, function)
                self.visit_body(node.orelse, function)
            case ast.For():
                self.lines = range(node.lineno, node.iter.end_lineno + 1)
                self.expression(node.iter)
                self.visit_body(node.body + node.orelse, function)
            case ast.With():
                self.lines = range(node.lineno, node.body[0].lineno)
                for item in node.items:
                    self.expression(item.context_expr)
                self.visit_body(node.body, function)
            case ast.Try():
                self.visit_body(node.body, function)
                for handler in node.handlers:
                    self.visit_body(handler.body, function)
                self.visit_body(node.orelse + node.finalbody, function)
            case ast.Raise():
                self.replace("statement deleted", node, "pass")
                self.error(node)
            case ast.Return():
                self.returned(node)
            case ast.Assign() | ast.AugAssign() | ast.AnnAssign():
                self.assignment(node)
            case ast.Expr():
                self.replace("statement deleted", node, "pass")
                self.expression(node.value)
            case ast.Continue():
                self.replace("statement deleted", node, "pass")

    def place(self, node: ast.stmt) -> tuple[int, int]:
        """The first line of a statement, and the number of lines after it."""
        first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
        return first, self.num_lines - node.end_lineno

    def visit_function(self, node: ast.FunctionDef, function: str) -> None:
        body = [s for s in node.body if not _is_docstring(s)]
        if not body:
            return
        # What a default or a decorator does shows when the function runs.
        self.lines = range(body[0].lineno, body[-1].end_lineno + 1)
        self.function = f"{function}.{node.name}".lstrip(".")
        for default in [*node.args.defaults, *node.args.kw_defaults]:
            if default is not None:
                self.expression(default, default=True)
        for decorator in node.decorator_list:
            self.expression(decorator)
        outermost, self.inside = not self.inside, True
        self.visit_body(node.body, f"{function}.{node.name}".lstrip("."))
        self.inside = not outermost

    def error(self, node: ast.Raise) -> None:
        call = node.exc
        if isinstance(call, ast.Name) and call.id in ERRORS:
            self.replace("another error", call, ERRORS[call.id])
        if isinstance(call, ast.Call):
            if isinstance(call.func, ast.Name) and call.func.id in ERRORS:
                self.replace("another error", call.func, ERRORS[call.func.id])
            for argument in call.args:
                self.expression(argument)

    def returned(self, node: ast.Return) -> None:
        value = node.value
        if value is None:
            return
        if not _is_none(value):
            self.replace("return value", node, "return None")
        if isinstance(value, ast.Tuple):
            self.swap_neighbours("elements swapped", value, value.elts)
        self.expression(value)

    def assignment(self, node: ast.Assign | ast.AugAssign | ast.AnnAssign) -> None:
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        if node.value is None:
            return
        names = {n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)}
        read = {n.id for n in ast.walk(node.value) if isinstance(n, ast.Name)}
        stored = any(isinstance(target, (ast.Attribute, ast.Subscript)) for target in targets)
        if "__all__" in names or (isinstance(node, ast.AnnAssign) and not self.function):
            return
        if stored or isinstance(node, ast.AugAssign) or names & read:
            self.replace("statement deleted", node, "pass")
        if isinstance(node, ast.AugAssign):
            turned = copy.deepcopy(node)
            if type(node.op) in ARITHMETIC:
                turned.op = ARITHMETIC[type(node.op)]()
                self.replace("arithmetic", node, turned)
        for target in targets:
            if isinstance(target, ast.Tuple):
                self.swap_neighbours("elements swapped", target, target.elts)
        self.expression(node.value)

    # Expressions

    def condition(self, test: ast.expr) -> None:
        """A condition turned round, where no simpler mutant does the same."""
        simple = isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not)
        simple = simple or (isinstance(test, ast.Compare) and len(test.ops) == 1)
        if not simple:
            self.replace("condition", test, ast.UnaryOp(ast.Not(), copy.deepcopy(test)))

    def swap_neighbours(self, operator: str, node: ast.expr, elements: list[ast.expr]) -> None:
        for index in range(len(elements) - 1):
            one, two = elements[index : index + 2]
            if isinstance(one, ast.Starred) or isinstance(two, ast.Starred):
                continue
            start = self.starts[one.lineno - 1] + one.col_offset
            end = self.starts[two.end_lineno - 1] + two.end_col_offset
            between = self.data[
                self.starts[one.end_lineno - 1] + one.end_col_offset : self.starts[two.lineno - 1]
                + two.col_offset
            ].decode()
            texts = [self.text(element) for element in (one, two)]
            self.add(operator, start, end, texts[1] + between + texts[0], one.lineno)

    def expression(self, node: ast.expr, default: bool = False) -> None:
        """Add the mutants of an expression and of all that is in it."""
        handler: Callable[..., None] | None = getattr(self, f"_{type(node).__name__}", None)
        if isinstance(node, ast.Constant):
            self.constant(node, default)
            return
        if handler:
            handler(node)
        for child in _inner(node):
            if not (isinstance(node, ast.Compare) and _is_none(child)):
                self.expression(child)

    def constant(self, node: ast.Constant, default: bool = False) -> None:
        value = node.value
        if isinstance(value, bool):
            self.replace("constant", node, str(not value))
        elif isinstance(value, int):
            self.replace("number", node, str(value + 1))
            if value > 0:
                self.replace("number", node, str(value - 1))
        elif isinstance(value, float):
            self.replace("number", node, repr(2 * value if value else 1.0))
        elif value is None:
            self.replace("constant", node, "0")
        elif isinstance(value, str) and value and not set(" \n") & set(value):
            self.replace("text", node, repr(value + "_"))

    def _BinOp(self, node: ast.BinOp) -> None:
        if type(node.op) in ARITHMETIC:
            turned = copy.deepcopy(node)
            turned.op = ARITHMETIC[type(node.op)]()
            self.replace("arithmetic", node, turned)

    def _UnaryOp(self, node: ast.UnaryOp) -> None:
        if isinstance(node.op, (ast.Not, ast.USub)):
            self.replace("sign", node, copy.deepcopy(node.operand))
        if ast.unparse(node) == "-1":
            self.replace("number", node, "0")

    def _Compare(self, node: ast.Compare) -> None:
        for index, operator in enumerate(node.ops):
            for other in COMPARISON.get(type(operator), ()):
                turned = copy.deepcopy(node)
                turned.ops[index] = other()
                self.replace("comparison", node, turned)

    def _BoolOp(self, node: ast.BoolOp) -> None:
        turned = copy.deepcopy(node)
        turned.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        self.replace("and, or", node, turned)
        for index in range(len(node.values)):
            rest = [copy.deepcopy(v) for i, v in enumerate(node.values) if i != index]
            shorter = rest[0] if len(rest) == 1 else ast.BoolOp(copy.deepcopy(node.op), rest)
            self.replace("condition dropped", node, shorter)

    def _IfExp(self, node: ast.IfExp) -> None:
        self.condition(node.test)

    def _ListComp(self, node: ast.ListComp) -> None:
        for generator in node.generators:
            for test in generator.ifs:
                self.condition(test)

    _GeneratorExp = _SetComp = _DictComp = _ListComp

    def _Call(self, node: ast.Call) -> None:
        name = ast.unparse(node.func)
        pairs = node.args
        if name == "jnp.where" and len(node.args) == 3:
            pairs = node.args[1:]
        if name not in ("isinstance", "hasattr", "getattr") or len(node.args) == 3:
            self.swap_neighbours("arguments swapped", node, pairs)
        for index, keyword in enumerate(node.keywords):
            shorter = copy.deepcopy(node)
            del shorter.keywords[index]
            if keyword.arg is not None:
                self.replace("argument dropped", node, shorter)
        alone = len(node.args) == 1 and not node.keywords and name not in CONTAINERS
        if alone and not isinstance(node.args[0], (ast.Starred, ast.GeneratorExp)):
            self.replace("call dropped", node, copy.deepcopy(node.args[0]))
        if isinstance(node.func, ast.Attribute) and node.func.attr == "astype":
            self.replace("call dropped", node, copy.deepcopy(node.func.value))

    def _Attribute(self, node: ast.Attribute) -> None:
        if node.attr == "T":
            self.replace("transposition dropped", node, copy.deepcopy(node.value))

    def _Slice(self, node: ast.Slice) -> None:
        text = self.text(node)
        if node.lower is None:
            self.replace("slice", node, "1" + text)
        if node.upper is None and node.step is None:
            self.replace("slice", node, text + "-1")

    def _JoinedStr(self, node: ast.JoinedStr) -> None:
        fixed = "".join(part.value for part in node.values if isinstance(part, ast.Constant))
        if " " not in fixed:
            self.replace("text", node, self.text(node) + ' + "_"')


ATOMS = (ast.Name, ast.Constant, ast.Call, ast.Attribute, ast.Subscript, ast.Tuple, ast.List)


def _inner(node: ast.AST) -> Iterator[ast.expr]:
    """The expressions directly within one, except what an f-string shows and annotations."""
    if isinstance(node, ast.JoinedStr):
        return
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.expr):
            yield child
        elif isinstance(child, (ast.keyword, ast.comprehension)):
            yield from _inner(child)


def _is_none(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _flat(text: str) -> str:
    return " ".join(text.split())
