package wire

// KnockSize is the length of the nonce with which a host begins anew on the
// pipes of an agent: the host writes it into the door, and the agent says it as
// the first bytes of the connection, before any frame.
const KnockSize = 16
