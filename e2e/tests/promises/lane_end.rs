//! What must hold of each shared cluster when the last test in it is over: e2e/test.sh runs this file after all others.

use braid_e2e::lanes::{Lane, end_of};

#[test]
fn the_quiet_cluster_agrees_and_has_logged_no_error() {
    end_of(Lane::Quiet);
}

#[test]
fn the_clusters_of_tests_alone_agree_and_have_logged_no_error() {
    end_of(Lane::Alone);
}
