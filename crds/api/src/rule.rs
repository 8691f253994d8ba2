//! Building blocks of the CEL rules in the schemas.
//!
//! The functions below return CEL text; their arguments are CEL text too. The API server estimates what a rule
//! can cost at most from the bounds of lists and strings and refuses a CRD that is too dear, which is why every
//! list and string in the schemas is bounded.

use kube::core::Rule;

/// A rule with the sentence that is shown when it does not hold.
pub(crate) fn rule(cel: impl Into<String>, message: &str) -> Rule {
    Rule::new(cel.into()).message(message)
}

/// A rule of an object about one of its fields: the error points at `field` (as `.gateway`).
pub(crate) fn about(field: &str, cel: impl Into<String>, message: &str) -> Rule {
    rule(cel, message).field_path(field)
}

/// A field of an object that stays as it was made, also if that is absent; `field` as `vlan.id`.
///
/// `none` is CEL text for a value that the field cannot have.
pub(crate) fn immutable(field: &str, none: &str, message: &str) -> Rule {
    let value = |object: &str| {
        let mut path = object.to_owned();
        let mut present = Vec::new();
        for part in field.split('.') {
            path = format!("{path}.{part}");
            present.push(format!("has({path})"));
        }
        format!("({} ? {path} : {none})", present.join(" && "))
    };
    about(&format!(".{field}"), format!("{} == {}", value("self"), value("oldSelf")), message)
}

/// The name of an object that other objects carry as a label and that devices are named after.
pub(crate) fn label_name() -> Rule {
    rule(
        "self.metadata.name.size() <= 63 && self.metadata.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')",
        "metadata.name: use at most 63 lower-case letters, digits and dashes, with a letter or digit at both ends",
    )
}

/// `self` is a list of device names and patterns that the kernel could have.
pub(crate) fn device_patterns() -> Rule {
    rule(
        "self.all(i, i.matches('^[!-.0-9;-~]+$') && i.replace('*', '').size() <= 15 && !(i in ['.', '..']))",
        "interfaces: each entry is a device name of at most 15 characters without white space, / and :, in which * \
         stands for any characters",
    )
}

/// `s` is an address in its canonical spelling.
pub(crate) fn is_address(s: &str) -> String {
    format!("(isIP({s}) && ip.isCanonical({s}))")
}

/// The family of the prefix `c`: 4 or 6.
pub(crate) fn family(c: &str) -> String {
    format!("cidr({c}).ip().family()")
}

/// `s` is a prefix in its canonical spelling, with all host bits zero.
pub(crate) fn is_prefix(s: &str) -> String {
    format!("(isCIDR({s}) && string(cidr({s}).masked()) == {s})")
}

/// The rules of a field that is a prefix of pod addresses.
pub(crate) fn prefix(field: &'static str) -> [Rule; 3] {
    [
        rule(
            "isCIDR(self)",
            &format!(
                "{field}: write a prefix as address/length, such as 10.244.0.0/16 or fd00:10:244::/64; \
                      IPv4-mapped IPv6 (::ffff:0:0/96) is not possible"
            ),
        ),
        rule(
            "!isCIDR(self) || string(cidr(self).masked()) == self",
            &format!(
                "{field}: clear the bits behind the prefix length (10.244.0.0/16, not 10.244.3.7/16) and use the \
                      shortest spelling (fd00::/64, not FD00:0::/64)"
            ),
        ),
        rule(
            format!("!isCIDR(self) || {}", unicast("self")),
            &format!(
                "{field}: pods cannot have addresses in 0.0.0.0/8, 127.0.0.0/8, 169.254.0.0/16, 224.0.0.0/3, \
                      ::/127, ::ffff:0:0/96, fe80::/10 or ff00::/8 (unspecified, loopback, link-local, multicast, reserved); \
                      use another prefix, such as one of 10.0.0.0/8 or fd00::/8"
            ),
        ),
    ]
}

/// The prefix `c` holds none of the addresses that no pod can have.
pub(crate) fn unicast(c: &str) -> String {
    let four = "['0.0.0.0/8', '127.0.0.0/8', '169.254.0.0/16', '224.0.0.0/3']";
    let six = "['::/127', 'fe80::/10', 'ff00::/8']";
    format!(
        "!({} == 4 ? {four} : {six}).exists(s, cidr(s).containsCIDR(cidr({c}).masked()) || cidr({c}).containsCIDR(s))",
        family(c)
    )
}

/// `r` is an address, or two of them as first-last.
pub(crate) fn is_range(r: &str) -> String {
    format!("(size({r}.split('-')) <= 2 && {r}.split('-').all(a, {}))", is_address("a"))
}

/// The address in front of the slash of the prefix `c`.
pub(crate) fn address_of(c: &str) -> String {
    format!("{c}.substring(0, {c}.indexOf('/'))")
}

/// First address of the range `r`.
pub(crate) fn first(r: &str) -> String {
    format!("({r}.contains('-') ? {r}.substring(0, {r}.indexOf('-')) : {r})")
}

/// Last address of the range `r`.
pub(crate) fn last(r: &str) -> String {
    format!("{r}.substring({r}.indexOf('-') + 1)")
}

/// Address `a` is not behind address `b`; both are canonical and of one family.
pub(crate) fn not_behind(a: &str, b: &str) -> String {
    format!(
        "[[{}, {}]].all(p, p[0][0] < p[1][0] || (p[0][0] <= p[1][0] && p[0][1] <= p[1][1]))",
        number(a),
        number(b)
    )
}

/// The canonical address `a` as two integers of 64 bits that compare as addresses do.
///
/// CEL can tell whether two addresses are equal, not which one comes first, and it reads no hexadecimal
/// numbers. The limits given to `split` are what the API server takes as the length of the list when it
/// estimates the cost.
fn number(a: &str) -> String {
    let four = format!(
        "[{a}.split('.', 4).map(x, int(x))].map(n, [n[0] * 16777216 + n[1] * 65536 + n[2] * 256 + n[3], 0])[0]"
    );
    // `::` becomes as many zero groups as are missing to eight; one at an end leaves an empty group, also zero.
    let written_out =
        format!("{a}.replace('::', ':' + '0:0:0:0:0:0:'.substring(0, 2 * (9 - size({a}.split(':')))))");
    let digit = |place: u32| {
        format!(
            "(size(x) > {place} ? '0123456789abcdef'.indexOf(x.charAt(size(x) - {})) * {} : 0)",
            place + 1,
            16u32.pow(place)
        )
    };
    let group = [digit(3), digit(2), digit(1), digit(0)].join(" + ");
    // The first of four groups is moved down by half of its range, so that 64 bits fit a signed integer.
    let half = |i: usize| {
        format!("(((n[{}] - 32768) * 65536 + n[{}]) * 65536 + n[{}]) * 65536 + n[{}]", i, i + 1, i + 2, i + 3)
    };
    let six = format!("[{written_out}.split(':', 8).map(x, {group})].map(n, [{}, {}])[0]", half(0), half(4));
    format!("({a}.contains(':') ? {six} : {four})")
}

/// The IPv4 address `a` is the last one of prefix `c`.
pub(crate) fn is_broadcast(a: &str, c: &str) -> String {
    let masks: Vec<String> = (0..=32u32).map(|len| ((1u64 << (32 - len)) - 1).to_string()).collect();
    let mask = format!("[{}][cidr({c}).prefixLength()]", masks.join(", "));
    format!("{}[0] % ({mask} + 1) == {mask}", number(a))
}
