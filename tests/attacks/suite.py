"""All attacks by name, in the order in which they run."""

import bodies
import floods
import leaks
import people
import protocol
import providers
import routes
import stores
import tools

MODULES = (protocol, floods, bodies, routes, leaks, people, providers, tools, stores)
ATTACKS = {name: attack for module in MODULES for name, attack in module.ATTACKS.items()}
