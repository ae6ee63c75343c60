//! Real servers for tests, each on a free loopback port and ended with the test, and a proxy that injects faults.
