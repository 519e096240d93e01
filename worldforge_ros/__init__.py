"""Robot-side planning: policies propose, world models score, the planner chooses, the gate
decides.
"""

from pkgutil import extend_path

# The generated msg and srv modules live in the installed copy of this package; a source checkout or
# an editable install finds them there.
__path__ = extend_path(__path__, __name__)

__version__ = "0.1.0"
