"""Connections to the server. Import from the modules themselves.

Three kinds of connection, each opened for one `RedisConfig`:

    connection.py   `Connection`: all ordinary commands of a process, pipelined
    blocking.py     `BlockingConnection`: one blocking command at a time, such as BLPOP
    listener.py     `Listener`: pub/sub

What they are made of:

    endpoint.py     the server of a `RedisConfig`, and the pauses between attempts to connect
    route.py        which server has the namespace: the one in the URL, a cluster's node, or the sentinels' primary
    address.py      the URL, opening a socket with redis-py, and the server's errors as `MailboxError`
    link.py         one open socket: bytes out, parsed replies in

Next to them:

    commands.py     `Commands`: what the rest of the mailbox needs of a connection
    server.py       `check_server`: whether the server can be trusted with tasks
    client.py       redis-py pools and clients, for programs that have their own
"""
