# Attributes that are there and are no packages.
_:
{
  aFunction = x: x;
  aString = "not a package";
  aNumber = 42;
  aNull = null;
  anEmptySet = { };
  textFile = builtins.toFile "note.txt" "store path without a derivation\n"; # a string that is a store path
}
