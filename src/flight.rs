//! One flight for one key: a leader works, followers wait for its result; a lost leader is replaced.
