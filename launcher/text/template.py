"""Chat templates, rendered as Transformers renders them."""

import json
from datetime import datetime

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from text.errors import BadInput, BadRow

# Names under which datasets keep a message's reasoning; templates read the first, some the second.
REASONING = ("reasoning_content", "thinking", "reasoning")


class Generation(Extension):
    """`{% generation %}` marks what the model wrote. It changes nothing in the text."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True)).set_lineno(
            line
        )


def raise_exception(message):
    raise TemplateError(message)


def to_json(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    # Jinja's own filter escapes <, > and & for HTML, which a prompt must not contain.
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def compile_template(source, where):
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    try:
        return environment.from_string(source)
    except TemplateError as error:
        raise BadInput(
            f"{where}: the chat template does not compile ({one_line(error)}); correct it."
        ) from error


def one_line(error):
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:297] + "..."


def clean_message(message):
    """Without empty fields, which Parquet adds to every message; with reasoning under every name."""
    message = {key: value for key, value in message.items() if value is not None}
    reasoning = next((message[key] for key in REASONING if key in message), None)
    if reasoning is not None:
        message = {"thinking": reasoning, **message, "reasoning_content": reasoning}
    return message


class ChatTemplate:
    """A model's chat template(s). `sources` maps names to Jinja texts; `variables` are the special tokens."""

    def __init__(self, sources, variables, where):
        self.templates = {name: compile_template(source, where) for name, source in sources.items()}
        self.variables = variables
        self.where = where

    def choose(self, tools):
        if tools is not None and "tool_use" in self.templates:
            return self.templates["tool_use"]
        if "default" in self.templates:
            return self.templates["default"]
        if not self.templates:
            raise BadInput(
                f"{self.where}: the model has no chat template, but the data are conversations; add "
                "chat_template.jinja to the model folder, or give the data as text."
            )
        names = ", ".join(sorted(self.templates))
        raise BadInput(f"{self.where}: no chat template is called 'default' (found: {names}); name one so.")

    def render(self, messages, add_generation_prompt, tools, variables):
        template = self.choose(tools)
        names = {**self.variables, **variables}
        names.update(
            messages=[clean_message(message) for message in messages],
            tools=tools,
            documents=None,
            add_generation_prompt=add_generation_prompt,
        )
        try:
            return template.render(names)
        except (
            Exception
        ) as error:  # a template is a program of the model's author: anything may come out of it
            raise BadRow(
                f"the chat template refuses the conversation ({one_line(error)}); correct the row"
            ) from error
