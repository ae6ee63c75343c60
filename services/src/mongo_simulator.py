"""nx-27017, a MongoDB wire protocol on SQLite, with GridFS collections as plain ones.

Arguments are nx-27017's own: --db memory --host 127.0.0.1 -p PORT.
"""

from nx_27017 import handler, nx_27017, wire_protocol

# Fields of a command that name a collection.
NAMING = (
    "insert", "find", "update", "delete", "aggregate", "count", "distinct", "findAndModify",
    "createIndexes", "listIndexes", "dropIndexes", "drop", "create", "killCursors",
)


def undotted(parse):
    """Takes the dot out of collection names, which a plain collection may not have there."""

    def parsed(data):
        message = parse(data)
        for kind, body in message.get("sections", ()):
            if kind != "body":
                continue
            fields = NAMING + (("collection",) if "getMore" in body else ())
            for field in fields:
                if isinstance(body.get(field), str):
                    body[field] = body[field].replace(".", "__")
        return message

    return parsed


def coded(handle):
    """Gives errors the code that drivers want."""

    def handled(self, message):
        request, reply = handle(self, message)
        if reply.get("ok") == 0:
            reply.setdefault("code", 1)
        return request, reply

    return handled


# Its own way with `<bucket>.files` and `<bucket>.chunks` loses files.
handler._is_gridfs_collection = lambda name: False
wire_protocol.OP_MSG.parse = staticmethod(undotted(wire_protocol.OP_MSG.parse))
for name in ("handle_command", "handle_insert"):
    setattr(handler.NeoSQLiteHandler, name, coded(getattr(handler.NeoSQLiteHandler, name)))

nx_27017.main()
