"""nx-27017, a MongoDB wire protocol on SQLite, with GridFS collections as plain ones, and answering as MongoDB does
where it would not.

Arguments are nx-27017's own: --db memory --host 127.0.0.1 -p PORT.
"""

import json
import threading

from bson import ObjectId
from neosqlite.collection import Collection
from nx_27017 import handler, nx_27017, wire_protocol

# Fields of a command that name a collection.
NAMING = (
    "insert", "find", "update", "delete", "aggregate", "count", "distinct", "findAndModify",
    "createIndexes", "listIndexes", "dropIndexes", "drop", "create", "killCursors", "collStats",
)


# What an ObjectId outside of `_id` is kept as: there it equals nothing, as a text it does, and sorts alike.
MARK = "\x01ObjectId:"


def hidden(value, field=None):
    """Puts texts in the place of ObjectIds outside of `_id`."""
    if isinstance(value, dict):
        within = ((key, field if key.startswith("$") else key, value) for key, value in value.items())
        return type(value)((key, hidden(value, field)) for key, field, value in within)
    if isinstance(value, list):
        return [hidden(item, field) for item in value]
    return MARK + str(value) if isinstance(value, ObjectId) and field != "_id" else value


def shown(value):
    """Undoes `hidden`."""
    if isinstance(value, dict):
        return {key: shown(value) for key, value in value.items()}
    if isinstance(value, list):
        return [shown(item) for item in value]
    is_marked = isinstance(value, str) and value.startswith(MARK)
    return ObjectId(value[len(MARK):]) if is_marked else value


def undotted(parse):
    """Takes the dot out of collection names, which a plain collection may not have there, and hides ObjectIds."""

    def parsed(data):
        message = parse(data)
        message["sections"] = [(kind, hidden(body)) for kind, body in message.get("sections", ())]
        for kind, body in message["sections"]:
            if kind != "body":
                continue
            fields = NAMING + (("collection",) if "getMore" in body else ())
            for field in fields:
                if isinstance(body.get(field), str):
                    body[field] = body[field].replace(".", "__")
        return message

    return parsed


# What anyone may say.
GREETINGS = {"hello", "isMaster", "ismaster"}


def refusal(message):
    """What the file `refusing` says to answer, for the commands that it names: all of them if it names none."""
    try:
        with open("refusing", encoding="utf-8") as file:
            said = json.load(file)
    except FileNotFoundError:
        return None
    names = [next(iter(body), "") for kind, body in message.get("sections", ()) if kind == "body"]
    if set(names) & GREETINGS or ("commands" in said and not set(names) & set(said["commands"])):
        return None
    return {"ok": 0, "code": said["code"], "errmsg": said["errmsg"], "codeName": said["codeName"]}


# What findAndModify failed with: it answers as if it had found nothing.
failed = threading.local()


def noted(modify):
    """Notes what `modify` fails with."""

    def modified(*args, **kwargs):
        try:
            return modify(*args, **kwargs)
        except Exception as error:
            failed.error = error
            raise

    return modified


def coded(handle):
    """Gives errors the code that drivers want, and findAndModify its errors."""

    def handled(self, message):
        reply = refusal(message)
        if reply is not None:
            return message["request_id"], reply
        failed.error = None
        request, reply = handle(self, message)
        if failed.error is not None and reply.get("ok") == 1 and reply.get("value", 0) is None:
            text = str(failed.error)
            reply = {"ok": 0, "errmsg": text, "code": 11000 if "UNIQUE" in text else 1}
        if reply.get("ok") == 0 and any("collStats" in body for _, body in message.get("sections", ())):
            reply = {"ok": 1, "count": 0, "size": 0}  # of a collection that is not there
        if reply.get("ok") == 0:
            reply.setdefault("code", 1)
        return request, shown(reply)

    return handled


# Its own way with `<bucket>.files` and `<bucket>.chunks` loses files.
handler._is_gridfs_collection = lambda name: False
wire_protocol.OP_MSG.parse = staticmethod(undotted(wire_protocol.OP_MSG.parse))
for name in ("find_one_and_update", "find_one_and_replace", "find_one_and_delete"):
    setattr(Collection, name, noted(getattr(Collection, name)))
for name in ("handle_command", "handle_insert"):
    setattr(handler.NeoSQLiteHandler, name, coded(getattr(handler.NeoSQLiteHandler, name)))

nx_27017.main()
