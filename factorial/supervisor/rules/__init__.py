"""The rules of supervision, after Erlang/OTP: specifications, restarts, health. Pure: no process, no clock."""
